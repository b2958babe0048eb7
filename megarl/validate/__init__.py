"""Every check that needs more than one setting, before any process group exists.

`choices` looks at the settings alone, `meshes` at ranks, meshes and model shapes, `engines` at this
machine and what is installed, `files` at checkpoints, tokenizer, data sets and the reward. None of
them imports Megatron or vLLM.
"""

from megarl.validate.run import MACHINE, Purpose, validate, validate_elsewhere

__all__ = ["MACHINE", "Purpose", "validate", "validate_elsewhere"]
