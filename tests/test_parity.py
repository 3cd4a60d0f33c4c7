"""Our models against transformers on PyTorch: outputs, losses and gradients; folders that both load."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest

from ms_gpt import GPTConfig, model_class_placeholder
