import json

from superpose.train.loop import train


def test_a_few_steps_of_each_phase_are_traced(recipe, store, tmp_path):
    train(recipe, store, tmp_path / "run", profile=True)
    traces = sorted((tmp_path / "run" / "profile").iterdir())
    assert [trace.name for trace in traces] == ["step-00000005-rank-0.json", "step-00000013-rank-0.json"]
    events = json.loads(traces[0].read_text())["traceEvents"]
    assert any("linear_multi_hot" in str(event.get("name")) for event in events)
