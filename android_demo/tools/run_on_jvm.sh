#!/usr/bin/env bash
# Run Java with an APK's own code on this machine: the APK's classes.dex turned back into a jar, and the APK's own native
# libraries over bionic_shim. run_on_jvm.sh APK ABI WORK CLASSPATH WORD... (what `java` takes: options, a class, arguments)
# arm64-v8a runs under qemu, on a processor model that has ARMv8.1's atomic instructions.
set -euo pipefail
demo=$(cd "$(dirname "$0")/.." && pwd)
usage='usage: run_on_jvm.sh APK ABI WORK CLASSPATH WORD...'
apk=$(realpath "${1:?$usage}"); abi=${2:?$usage}; mkdir -p "${3:?$usage}"; work=$(cd "$3" && pwd)
classpath=${4:?$usage}; shift 4

stamp=$(sha256sum "$apk" "$demo"/bionic_shim/* "$0" | sha256sum | cut -d' ' -f1)
shim=$work/$abi
if [ "$(cat "$shim/stamp" 2>/dev/null)" != "$stamp" ]; then
  rm -rf "$shim"
  mkdir -p "$shim/lib"
  unzip -qo "$apk" "lib/$abi/*" -d "$shim/apk"
  PATH=/usr/bin:$PATH enjarify --force --output "$shim/dex.jar" "$apk" >/dev/null
  case $abi in
    x86_64) cc=gcc; options=() ;;
    arm64-v8a) cc=aarch64-linux-gnu-gcc; options=(-mno-outline-atomics) ;;
    *) echo "run_on_jvm.sh: no ABI $abi here" >&2; exit 1 ;;
  esac
  "$demo/bionic_shim/generate.py" "$abi" "$shim" "$shim/apk/lib/$abi"/*.so
  cd "$shim"
  options+=(-Wall -O1 -fPIC -shared -fno-builtin -fno-stack-protector -U_FORTIFY_SOURCE)
  "$cc" "${options[@]}" -Wl,-soname,libc.so -Wl,--version-script=libc.map -Wl,-Bsymbolic -o lib/libc.so \
    "$demo/bionic_shim/shim.c" stubs.S -ldl
  echo 'int nothing;' > empty.c
  echo 'LIBC { global: nothing; };' > empty.map
  for name in m dl; do
    "$cc" -fPIC -shared -nostdlib "-Wl,-soname,lib$name.so" -Wl,--version-script=empty.map -o "lib/lib$name.so" empty.c
  done
  "$cc" -fPIC -shared -nostdlib -Wl,-soname,libandroid.so -o lib/libandroid.so empty.c
  "$cc" -Wall -O1 -fPIC -shared -Wl,-soname,liblog.so -o lib/liblog.so "$demo/bionic_shim/log.c"
  "$cc" -O1 -fPIC -shared -o lib/libpreload.so "$demo/bionic_shim/preload.c" -ldl
  echo "$stamp" > stamp
fi
libraries=$shim/apk/lib/$abi
case $abi in x86_64) triplet=x86_64-linux-gnu ;; *) triplet=aarch64-linux-gnu ;; esac
words=("-Djava.library.path=$libraries:/usr/lib/$triplet/jni:/usr/lib/jni" -cp "$classpath:$shim/dex.jar" "$@")
if [ "$abi" = x86_64 ]; then
  export APK_LIBRARIES=$libraries LD_PRELOAD=$shim/lib/libpreload.so LD_LIBRARY_PATH=$shim/lib:$libraries
  exec java "${words[@]}"
fi
root=$work/arm64-root
if [ ! -e "$root/usr/lib/jvm" ]; then
  mirror=$(awk '/^URIs:/ {print $2; exit}' /etc/apt/sources.list.d/debian.sources)
  mmdebstrap --quiet --mode=root --architectures=arm64 --variant=extract --skip=check/qemu \
    --include=openjdk-17-jre-headless,libstdc++6,zlib1g,libxerial-sqlite-jdbc-jni bookworm "$root.new" "$mirror"
  mv "$root.new" "$root"
fi
exec qemu-aarch64 -cpu cortex-a76 -L "$root" -E "APK_LIBRARIES=$libraries" -E "LD_PRELOAD=$shim/lib/libpreload.so" -E "LD_LIBRARY_PATH=$shim/lib:$libraries" \
  "$root/usr/lib/jvm/java-17-openjdk-arm64/bin/java" -XX:TieredStopAtLevel=1 "${words[@]}"
