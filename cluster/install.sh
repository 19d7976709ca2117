#!/usr/bin/env bash
# Installs kray and what it needs into the Python of an image or a node: torch first, then the rest, which must not replace
# it. The same recipe as the Makefile's, used by both Dockerfiles and by the `ray up` files.
#
#     bash cluster/install.sh gpu      # CUDA 13 builds, from PyPI; the node's driver must be 580 or newer
#     bash cluster/install.sh cpu      # CPU builds; torch from PyTorch's own index, the rest from PyPI
set -euo pipefail
extra="${1:?gpu or cpu}"
cd "$(dirname "$0")/.."
source="$(mktemp -d)" # pip builds in place, and the folder of a mounted source may not be writable
trap 'rm -rf "$source"' EXIT
cp -r pyproject.toml README.md kray "$source"
torch="$(sed -n 's/^ *"\(torch==[0-9.]*\)".*/\1/p' pyproject.toml)"
test -n "$torch" || { echo "pyproject.toml pins no torch" >&2; exit 1; }
case "$extra" in
  gpu) index=() ;;
  cpu) index=(--extra-index-url https://download.pytorch.org/whl/cpu); torch="$torch+cpu" ;;
  *) echo "gpu or cpu, not $extra" >&2; exit 2 ;;
esac
python -m pip install --quiet --no-cache-dir --upgrade pip # an old one says that math-verify lacks its extra
python -m pip install --quiet --no-cache-dir "${index[@]}" "$torch"
python -m pip install --quiet --no-cache-dir "$source[$extra]"
# vLLM asks for torchvision, torchaudio and torchcodec; builds that do not fit this torch break transformers, and text
# models need none of them.
python -c 'import torchvision' >/dev/null 2>&1 || python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
cd /
python -c 'import kray, ray, torch; print("kray", kray.__version__, "ray", ray.__version__, "torch", torch.__version__)'
