"""TorchTitan: its trainer, models, parallelism and checkpoints, with superposition in the first phase.

    torchrun --nproc-per-node 8 -m torchtitan.train --module superpose.integrations.torchtitan \
        --config superpose_270m --dataloader.dataset_path stores/dclm

A step's batch takes this way, the same under every parallelism of TorchTitan:

    loader     reads the step's windows of a prepared store and folds them: bags [B, L, S], targets [B, L, S]
    embedding  bags to vectors [B, L, D], where single tokens [B, L] pass through TorchTitan's own look-up
    model      TorchTitan's, unchanged, of one shape in both phases
    loss       logits against bags of targets; against single ones it is TorchTitan's cross-entropy
    trainer    says which bag size a step has (`superpose.Schedule`), and counts latents

`superposed` gives any of TorchTitan's language-model configs this way; `config_registry` holds the paper's models.
TorchTitan is imported by the modules, not here.
"""
