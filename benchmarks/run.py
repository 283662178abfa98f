"""All ratios in one go, as Markdown with the machine and versions: the tables of the README's section on speed.

    python benchmarks/run.py                       # some three hours on two quiet cores
    python benchmarks/run.py --only occlusion embeddings

Each line is a benchmark of this folder with its own options; see there for what is compared with what. Where there is a
GPU, those that can run on it do so too.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

FOLDER = Path(__file__).parent
PACKAGES = ("torch", "torchvision", "lightning", "captum", "scikit-learn", "openTSNE")


@dataclass(frozen=True)
class Part:
    """One benchmark.

    Attributes:
        title: Heading of its tables.
        script: File in this folder.
        options: For it.
        gpu: Options that run it on a GPU; None where it doesn't.
    """

    title: str
    script: str
    options: tuple[str, ...] = ()
    gpu: tuple[str, ...] | None = None


PARTS = {
    "occlusion": Part("Occlusion beside Captum's", "occlusion.py", gpu=("--device", "cuda")),
    "attribution": Part("Attribution beside Captum's", "attribution.py"),
    "overhead": Part("Training with callbacks and without", "overhead.py", ("--only", "quickstart")),
    "patches": Part("Maximally activating patches in a validation pass", "overhead.py", ("--only", "patches")),
    "embeddings": Part("Embeddings beside scikit-learn's", "embeddings.py"),
    "synthesis": Part("Images made from the network, beside bare passes", "synthesis.py"),
    "texture": Part("Texture synthesis beside a loop in NumPy", "texture.py", ("--parts", "speed")),
    "style": Part("Style transfer beside the plain recipes", "style.py", ("--precision", "fp32", "--compile")),
}


def machine() -> str:
    """Processor, its number formats, threads, and versions."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "processor unknown")
    flags = next((line.split(":")[1].split() for line in lines if line.startswith("flags")), [])
    native = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags]
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    versions = ", ".join(f"{package} {importlib.metadata.version(package)}" for package in PACKAGES)
    return f"{name} ({', '.join(native)}), {torch.get_num_threads()} threads, {gpu}; {versions}"


def tables(script: str, options: tuple[str, ...]) -> str:
    """The tables that a benchmark prints; what else it says goes to standard error."""
    run = [sys.executable, str(FOLDER / script), *options]
    with subprocess.Popen(run, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines, inside = [], False
        for line in process.stdout:
            print(line, end="", file=sys.stderr, flush=True)
            row = line.startswith("|")
            if inside and not row:
                lines.append("\n")
            if row:
                lines.append(line)
            inside = row
    if process.returncode:
        lines.append(f"\nfailed with status {process.returncode}\n")
    return "".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    args = parser.parse_args()
    print(f"{machine()}\n", flush=True)
    for part in (PARTS[name] for name in args.only):
        print(f"### {part.title}\n\n{tables(part.script, part.options)}", flush=True)
        if part.gpu is not None and torch.cuda.is_available():
            print(f"### {part.title}, on the GPU\n\n{tables(part.script, (*part.options, *part.gpu))}", flush=True)


if __name__ == "__main__":
    main()
