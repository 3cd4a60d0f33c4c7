"""Fused CPU kernels in C++, and the plain operations that they stand in for.

- ``linear``: MatMul, BiasAdd, BiasAddGrad; in ``layers.Conv1D``
- ``project``: MatMul with the second matrix transposed; in ``heads``: logits over the vocabulary
- ``gelu``: Sigmoid and products; in ``layers.Activation``
- ``add``: Add; in ``layers.Add``: the residual sum behind an MLP
- ``layer_norm``, ``add_layer_norm``: the residual sum, two reductions and their gradient; in ``layers.LayerNorm``
- ``dropout``: the hash, comparison and product; in ``layers.Dropout``
- ``attention``: split, transposes, two BatchMatMul, Softmax, dropout; in ``model.Attention``
- ``attention_step``: the same for one new token, and the write into the cache; in ``model.Attention``
- ``block_step``: all of a block, for one new token in each of a few rows; in ``model.Block``
- ``argmax``: Argmax; in ``generation.session``
- ``cross_entropy``: LogSoftmax, GatherD; in ``losses.cross_entropy``
- ``adamw``: the norm, clipping and AdamWeightDecay of every parameter; in ``training.step``

The sources in ``src`` are compiled with the system's C++ compiler on first use. They run on the CPU alone: an exported
graph, Ascend and GPUs get the plain operations, and so does a machine without a compiler, or with
``MS_GPT_KERNELS=off``.
"""

from __future__ import annotations

from ms_gpt._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__, {"are_usable": "build", "library": "build", "status": "build", "kernel": "ops", "STEP_ROWS": "ops"})
