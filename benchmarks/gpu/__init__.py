"""What superpose does on a GPU, measured by one command in minutes, without a network.

    PYTHONPATH=src:benchmarks python -m gpu --out results/        eight minutes on one card at most
    PYTHONPATH=src:benchmarks python -m gpu --out results/ --small    the same on a CPU, in seconds, to see that it runs
    PYTHONPATH=src:benchmarks python -m gpu --page benchmarks/results/gpu.json      writes docs/gpu.md

It needs PyTorch, NumPy, transformers and tokenizers, and of superpose the core alone. A part that fails is recorded
with its sentence and the others go on; `gpu.json` is written after each.
"""
