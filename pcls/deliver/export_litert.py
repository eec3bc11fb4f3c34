"""A JAX program as a file of LiteRT (once TensorFlow Lite), which phones and small computers run one example at a time.

LiteRT's own converter reads StableHLO. Loops over time are written out before, because it cannot store their bodies.
Where it is told what is rounded (`Told`), it stores kernels as integers, and multiplies in integers where what comes
out is rounded too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
from jax import Array, export
from jax.extend.core import jaxpr_as_fun
from litert_converter import converter_api_ext as converter
from litert_converter.mlir.ir import Context, Module
from litert_converter.mlir.passmanager import PassManager

from pcls.errors import UserError, first_line

# What readers of such files take when they are not told which.
SIGNATURE = "serving_default"


def to_litert(function: Callable[..., Array], inputs: Mapping[str, jax.ShapeDtypeStruct]) -> bytes:
    """Translates a program.

    Args:
      function: of arrays by name to logits; what else it needs is constant.
      inputs: by name, shape and type of each.

    Raises:
      UserError: it does what LiteRT cannot.
    """
    names = sorted(inputs)
    given = [inputs[name] for name in names]
    with jax.disable_jit():
        traced = jax.make_jaxpr(lambda *arrays: function(**dict(zip(names, arrays, strict=True))))(*given)
    # Of no platform that has convolutions of its own kind.
    lowered = export.export(jax.jit(lambda *arrays: jaxpr_as_fun(traced)(*arrays)[0]), platforms=["cuda"])(*given)
    context = Context()
    converter.prepare_mlir_context(context)
    with context:
        module = Module.parse(lowered.mlir_module())
        converter.set_signature(module.operation, SIGNATURE, names, ["logits"])
        settings = converter.ConvertToTFLConfig()
        settings.qdq_conversion_mode, settings.strict_qdq_mode = "STRICT", True
        try:
            converter.run_convert_to_tfl_passes(module, PassManager(), settings)
            return converter.export_flatbuffer_to_bytes(module.operation)
        except ValueError as error:
            raise UserError(
                f"--to litert: its converter cannot translate this model ({first_line(error)}); choose --to onnx"
            ) from error
