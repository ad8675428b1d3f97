"use strict";
// Explains a marked word beside it: on hover, on keyboard focus and on touch. Escape, or a click elsewhere, closes it.
{
  const tip = document.getElementById("tip");
  let word = null;

  const show = button => {
    word = button;
    tip.textContent = document.getElementById(button.getAttribute("aria-describedby")).textContent;
    tip.hidden = false;
    const at = button.getBoundingClientRect(), box = tip.getBoundingClientRect(), edge = 8;
    const left = Math.min(at.left, document.documentElement.clientWidth - box.width - edge);
    const below = at.bottom + 6, fits = below + box.height <= innerHeight;
    tip.style.left = `${Math.max(edge, left)}px`;
    tip.style.top = `${fits ? below : at.top - box.height - 6}px`;
  };
  const hide = () => {
    tip.hidden = true;
    word = null;
  };
  const term = event => event.target.closest?.(".term");

  for (const kind of ["mouseover", "focusin", "click"]) {
    document.addEventListener(kind, event => {
      if (term(event)) show(term(event));
      else if (kind === "click" && event.target !== tip) hide();
    });
  }
  document.addEventListener("mouseout", event => {
    if (word && word !== document.activeElement && event.relatedTarget !== tip) hide();
  });
  document.addEventListener("focusout", hide);
  document.addEventListener("keydown", event => event.key === "Escape" && hide());
  for (const kind of ["scroll", "resize"]) addEventListener(kind, () => word && show(word), { capture: true, passive: true });
}
