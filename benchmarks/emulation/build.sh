#!/usr/bin/env bash
# An arm64 Debian user space to run the ground floor in, under qemu: no boot, no chroot, no binfmt, no network in it.
#
#   build.sh WORK WHEEL SOURCE    WORK: folder to build in, or to find it all again. WHEEL: of CoDA. SOURCE: shim.cpp.
#
# WORK/root       Debian 12's Python for arm64, unpacked only: none of its code is run to build it
# WORK/site       arm64 wheels of what the device needs, and CoDA itself
# WORK/libicount-*.so  the plugin that counts instructions
# WORK/shim.so    the ExecuTorch shim for arm64, by the cross compiler
set -euo pipefail
work=$1 wheel=$2 source=$3
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$work"

missing=()
command -v qemu-aarch64 >/dev/null || missing+=(qemu-user)
command -v mmdebstrap >/dev/null || missing+=(mmdebstrap)
command -v aarch64-linux-gnu-g++ >/dev/null || missing+=(g++-aarch64-linux-gnu)
command -v gcc >/dev/null || missing+=(gcc)
if ((${#missing[@]})); then
  if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "the emulated Pi needs these packages of Debian 12 or Ubuntu: ${missing[*]}" >&2
    exit 3
  fi
  echo "installing: ${missing[*]}" >&2
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi
if ! qemu-aarch64 -h 2>&1 | grep -q -- -plugin; then
  echo "this qemu-aarch64 takes no plugins (it is linked statically); the package qemu-user has one that does" >&2
  exit 3
fi

if [ ! -e "$work/root/.done" ]; then
  echo "unpacking an arm64 Debian" >&2
  rm -rf "$work/root"
  mirror=$(awk '/^URIs:/{print $2; exit}' /etc/apt/sources.list.d/*.sources 2>/dev/null || true)
  mirror=${mirror:-$(awk '/^deb /{for (i = 2; i <= NF; i++) if ($i ~ /^http/) {print $i; exit}}' /etc/apt/sources.list)}
  mmdebstrap --quiet --mode=root --architectures=arm64 --variant=extract --skip=check/qemu \
    --include=python3,libgomp1,libstdc++6,ca-certificates bookworm "$work/root" "$mirror"
  # qemu 7.2 shows the host's file, and ONNX Runtime's search for CPU features does not survive that
  mkdir -p "$work/root/proc"
  for core in 0 1 2 3; do
    printf 'processor\t: %d\nBogoMIPS\t: 108.00\nFeatures\t: fp asimd evtstrm crc32 cpuid\n' "$core"
    printf 'CPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x0\nCPU part\t: 0xd08\nCPU revision\t: 3\n\n'
  done > "$work/root/proc/cpuinfo"
  touch "$work/root/.done"
fi

pip_arm64() {
  python3 -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --only-binary=:all: \
    --implementation cp --python-version 3.11 --abi cp311 --abi abi3 --abi none \
    --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 --platform manylinux_2_26_aarch64 \
    --platform manylinux_2_17_aarch64 --platform manylinux2014_aarch64 "$@"
}
if [ ! -e "$work/site/.done" ]; then
  echo "installing arm64 wheels" >&2
  rm -rf "$work/site"
  pip_arm64 --target "$work/site" "$wheel" pytest pytest-timeout hypothesis
  pip_arm64 --target "$work/site" --no-deps executorch==1.5.1
  touch "$work/site/.done"
fi
# CoDA itself is taken anew each time
rm -rf "$work"/site/coda_loop-*.dist-info
for package in device_runtime export cloud benchmarks; do rm -rf "${work:?}/site/$package"; done
pip_arm64 --target "$work/site" --no-deps --upgrade "$wheel"

gcc -O2 -shared -fPIC -fvisibility=hidden -Wall -Werror -o "$work/libicount.so" "$here/icount.c"

include=$work/site/executorch/include
libraries=$work/site/executorch/lib
if [ ! "$work/shim.so" -nt "$source" ]; then
  echo "building the ExecuTorch shim for arm64" >&2
  # shellcheck disable=SC2086 # flags are words
  aarch64-linux-gnu-g++ ${SHIM_FLAGS:?} -I"$include" -I"$include/executorch/runtime/core/portable_type/c10" \
    -o "$work/shim.so" "$source" -L"$libraries" -Wl,--allow-shlib-undefined -lexecutorch -lexecutorch_threadpool
fi
