#!/usr/bin/env bash
# Fetch what toolchain.lock names into a folder, check every digest, and unpack what is used of it. Whole or not at all.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=${1:?usage: fetch.sh FOLDER}
lock=$here/../toolchain.lock
stamp=$(cat "$lock" "$0" | sha256sum | cut -d" " -f1)
if [ "$(cat "$out/stamp" 2>/dev/null)" = "$stamp" ]; then exit 0; fi
rm -rf "$out"
mkdir -p "$out/work"
out=$(cd "$out" && pwd)
cd "$out/work"

check() { # FILE ALGORITHM:DIGEST
  echo "${2#*:}  $1" | "${2%%:*}sum" --check --quiet - || { echo "fetch.sh: $1 is not the file that toolchain.lock names" >&2; exit 1; }
}

# A package state of our own: the machine's sources stay as they are.
mirror=$(awk '/^URIs:/ {print $2; exit}' /etc/apt/sources.list.d/debian.sources 2>/dev/null || true)
[ -n "$mirror" ] || mirror=$(awk '$1 == "deb" {for (i = 2; i <= NF; i++) if ($i ~ /^https?:/) {print $i; exit}}' /etc/apt/sources.list)
mkdir -p lists/partial cache/archives/partial
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror bullseye main" > sources.list
apt=(apt-get -qq -o "Dir::Etc::sourcelist=$PWD/sources.list" -o Dir::Etc::sourceparts=- -o "Dir::State::lists=$PWD/lists"
     -o "Dir::Cache=$PWD/cache" -o APT::Sandbox::User=root)
"${apt[@]}" update
grep -v '^#' "$lock" | while read -r kind name version digest; do
  case $kind in
    deb) "${apt[@]}" download "$name=$version"
         file=$(ls "${name}"_*.deb)
         check "$file" "$digest"
         dpkg-deb -x "$file" "$out/sdk" ;;
    npm) file=$(npm pack --silent "$name@$version")   # no script of the package is run
         check "$file" "$digest" ;;
  esac
done
mkdir engine
tar xzf react-native-executorch-*.tgz --strip-components=1 package/android/libs package/third-party/android/libs/executorch
mv android/libs/classes.jar "$out/executorch.jar"
tar xzf react-native-0*.tgz --wildcards --strip-components=7 '*/react-native-*-release.aar'
unzip -qo react-native-*-release.aar 'jni/*/libfbjni.so' 'jni/*/libc++_shared.so'
for abi in arm64-v8a x86_64; do
  mkdir -p "$out/lib/$abi"
  mv "third-party/android/libs/executorch/$abi/libexecutorch.so" "jni/$abi/libfbjni.so" "jni/$abi/libc++_shared.so" "$out/lib/$abi"
done
cd "$out"
mv sdk/usr/share/java/com.android.android-23.jar android.jar
mv sdk/usr/share/java/com.android.dx-10.0.0.jar dx.jar
rm -rf work sdk
echo "$stamp" > stamp
