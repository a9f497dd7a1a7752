#!/usr/bin/env bash
# A Python with what the device runtime needs, in one folder that needs nothing else of the system it is on:
# python_folder.sh amd64|arm64 OUT. Push it to an Android device, then
#   coda profile --adb SERIAL --python /data/local/tmp/coda-python/python --server … --trust … --history …
set -euo pipefail
arch=${1:?usage: python_folder.sh amd64|arm64 OUT}
out=${2:?usage: python_folder.sh amd64|arm64 OUT}
case $arch in
  amd64) triplet=x86_64-linux-gnu loader=ld-linux-x86-64.so.2 machine=x86_64 ;;
  arm64) triplet=aarch64-linux-gnu loader=ld-linux-aarch64.so.1 machine=aarch64 ;;
  *) echo "python_folder.sh: no architecture $arch" >&2; exit 1 ;;
esac
here=$(cd "$(dirname "$0")" && pwd)
mirror=$(awk '/^URIs:/ {print $2; exit}' /etc/apt/sources.list.d/debian.sources)
mmdebstrap --quiet --mode=root "--architectures=$arch" --variant=extract --skip=check/qemu \
  --include=python3,libgomp1,libstdc++6,ca-certificates bookworm "$out" "$mirror"
platforms=()
for version in 2_28 2_27 2_26 2_17; do platforms+=(--platform "manylinux_${version}_$machine"); done
mapfile -t needs < <(python3 -c 'import sys, tomllib; print(*tomllib.load(open(sys.argv[1], "rb"))["project"]["dependencies"], sep="\n")' \
  "$here/../../pyproject.toml")
python3 -m pip install --quiet --target "$out/site" --only-binary=:all: --implementation cp --python-version 3.11 \
  --abi cp311 --abi abi3 --abi none "${platforms[@]}" --platform "manylinux2014_$machine" "${needs[@]}"
# Its own loader starts it, by its own libraries: Android has neither.
cat > "$out/python" <<EOF
#!/system/bin/sh
folder=\$(cd "\$(dirname "\$0")" && pwd)
export PYTHONHOME="\$folder/usr" PYTHONPATH="\$folder/site\${PYTHONPATH:+:\$PYTHONPATH}"
exec "\$folder/lib/$triplet/$loader" --library-path "\$folder/lib/$triplet:\$folder/usr/lib/$triplet" \\
  "\$folder/usr/bin/python3.11" "\$@"
EOF
chmod +x "$out/python"
du -sh "$out"
