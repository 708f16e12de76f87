"""Run the compiled step under sanitizers for addresses and undefined behaviour.

`python tests/support/sanitize_step.py -n N`: for three widths of vectors, N models of random shapes and formats are fed
random tokens. A byte that is read or written outside its array, or an operation that C leaves undefined, ends the
process with a report. The exit code is 1 then.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
STEPS = ROOT / "tinystory" / "session" / "steps"
OPTIONS = ["-O1", "-g", "-std=gnu11", "-fopenmp-simd", "-fno-math-errno", "-fPIC", "-shared"]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
LONG_VECTORS = ["-mavx2", "-mfma", "-D__AVX512F__", "-Wno-psabi"]
"""The compiler splits vectors that are too long for the processor, so any processor runs them."""
WIDTHS = {"4 lanes": [], "8 lanes": ["-mavx", "-mavx2", "-mfma"], "16 lanes": LONG_VECTORS}


def main():
    """Build and run every width; return 1 if one of them is at fault."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-n", type=int, default=1000, help="models for each width")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--library", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.library:
        feed(args.library, args.n, args.seed)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        return max([run(width, args, Path(folder)) for width in WIDTHS])


def run(width, args, folder):
    """Build the library with sanitizers, and feed it in another process, which loads the sanitizer first."""
    library = folder / f"{width.replace(' ', '-')}.so"
    sources = [str(STEPS / "step.c"), str(STEPS / "level.c")]
    subprocess.run(["gcc", *OPTIONS, *SANITIZERS, *WIDTHS[width], "-o", str(library), *sources, "-lm"], check=True)
    runtime = [
        subprocess.run(["gcc", f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    environment = os.environ | {"LD_PRELOAD": " ".join(runtime), "ASAN_OPTIONS": "detect_leaks=0"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, __file__, "-n", str(args.n), "--seed", str(args.seed), "--library", str(library)]
    code = subprocess.run(command, env=environment, check=False).returncode
    sys.stdout.write(f"{width}: {args.n} models, {'no fault' if code == 0 else f'exit code {code}'}\n")
    sys.stdout.flush()
    return int(code != 0)


def feed(path, n_models, seed):
    """Feed random tokens to models of random shapes."""
    import ctypes

    import numpy as np

    from tinystory.session.steps import compiled_step
    from tinystory.session.steps.compiled_code import CompiledCode
    from tinystory.session.steps.compiled_step import CompiledStep, PackedModel

    # Memory without a byte to spare, so that the sanitizer sees what goes beyond it.
    compiled_step._aligned = lambda n_bytes, dtype: np.empty(n_bytes, np.uint8).view(dtype)
    library = ctypes.CDLL(path)
    pointer, integer = ctypes.c_void_p, ctypes.c_int64
    signatures = {
        "panel_rows": (integer,),
        "pack": (None, pointer, integer, integer, integer, pointer),
        "scratch": (integer, pointer, integer, integer),
        "hidden": (None, pointer, pointer, integer, pointer, pointer, pointer, pointer, pointer),
        "logits": (None, pointer, integer, pointer, pointer, pointer),
    }
    functions = {}
    for name, (result, *arguments) in signatures.items():
        functions[name] = getattr(library, f"step_{name}_plain")
        functions[name].restype, functions[name].argtypes = result, arguments
    code = CompiledCode("plain", **functions)
    for number in range(n_models):
        rng = np.random.default_rng((seed, number))
        config = random_config(rng)
        model = PackedModel(code, config, random_weights(rng, config))
        n_rows, capacity = int(rng.integers(1, 5)), int(rng.integers(6, 40))
        shape = n_rows, config.n_kv_head, capacity, config.d_head
        caches = [(np.zeros(shape, np.float32), np.zeros(shape, np.float32)) for _ in range(config.n_layer)]
        tables = None
        if config.family == "llama":
            angles = rng.normal(size=(capacity, config.d_head)).astype(np.float32)
            tables = np.cos(angles), np.sin(angles)
        n_first = int(rng.integers(1, capacity))
        compiled_step._MOST_TOKENS = n_rows * n_first
        step = CompiledStep(model, tables, caches)
        ids = rng.integers(0, config.vocab_size, (n_rows, n_first))
        hidden = step.several(ids, np.zeros(n_rows, np.int64))
        step.logits(hidden.reshape(-1, config.d_model))
        for place in range(n_first, capacity):
            step.one(int(rng.integers(config.vocab_size)), place, int(rng.integers(n_rows)))


def random_config(rng):
    """Return the shape of a small model."""
    from tinystory.model.config import ModelConfig

    n_kv_head, group = int(rng.integers(1, 4)), int(rng.integers(1, 4))
    d_head = 2 * int(rng.integers(1, 40))
    n_head, vocab_size, n_layer = n_kv_head * group, int(rng.integers(2, 150)), int(rng.integers(1, 3))
    if rng.random() < 0.3:
        return ModelConfig.gpt2(vocab_size, n_layer, n_head, n_head * d_head, 64)
    d_model, d_ff = int(rng.integers(1, 130)), int(rng.integers(1, 150))
    return ModelConfig.llama(vocab_size, n_layer, n_head, d_model, 64, d_ff, n_kv_head=n_kv_head, d_head=d_head)


def random_weights(rng, config):
    """Return weights in float32, in values of bfloat16, or in int8 for the blocks; with biases for GPT-2."""
    import numpy as np

    from tinystory.session.steps.weights import Affine, LayerWeights, ModelWeights

    kind = ("float32", "bfloat16", "int8")[int(rng.integers(3))]

    class Rounded:
        def __init__(self, shape):
            self.parts = rng.integers(-127, 128, shape).astype(np.int8), np.full(shape[0], 0.01, np.float32)

        def integers(self):
            return self.parts

    def array(*shape):
        values = rng.normal(size=shape).astype(np.float32)
        return values if kind == "float32" else (values.view(np.uint32) & 0xFFFF0000).view(np.float32)

    gpt2 = config.family == "gpt2"

    def matrix(n_out, n_in):
        weight = Rounded((n_out, n_in)) if kind == "int8" else array(n_out, n_in)
        return Affine(weight, array(n_out) if gpt2 else None)

    def norm():
        return Affine(array(config.d_model), array(config.d_model) if gpt2 else None)

    heads, d_model = config.n_head * config.d_head, config.d_model
    n_qkv, n_up = heads + 2 * config.n_kv_head * config.d_head, config.d_ff * (1 if gpt2 else 2)
    layers = [
        LayerWeights(
            norm(), matrix(n_qkv, d_model), matrix(d_model, heads), norm(), matrix(n_up, d_model),
            matrix(d_model, config.d_ff),
        )
        for _ in range(config.n_layer)
    ]  # fmt: skip
    embed = array(config.vocab_size, d_model)
    return ModelWeights(embed, array(64, d_model) if gpt2 else None, layers, norm(), embed, 1e-5)


if __name__ == "__main__":
    sys.exit(main())
