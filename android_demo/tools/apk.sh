#!/usr/bin/env bash
# Build the debug-signed APK with what fetch.sh fetched: apk.sh TOOLCHAIN OUT. Leaves OUT/coda.apk.
set -euo pipefail
demo=$(cd "$(dirname "$0")/.." && pwd)
toolchain=$(cd "${1:?usage: apk.sh TOOLCHAIN OUT}" && pwd)
mkdir -p "${2:?usage: apk.sh TOOLCHAIN OUT}"
out=$(cd "$2" && pwd)
rm -rf "$out/work" "$out/coda.apk"
mkdir -p "$out/work"/{classes,gen,apk}
cd "$out/work"

aapt2 compile --dir "$demo/app/res" -o res.zip
aapt2 link -o base.apk -I "$toolchain/android.jar" --manifest "$demo/app/AndroidManifest.xml" --java gen res.zip 2>aapt2.log || { cat aapt2.log >&2; exit 1; }
mapfile -t sources < <(find "$demo/core/src" "$demo/app/src" "$demo/app/engines/executorch" "$demo/app/compat" gen -name '*.java' | sort)
# The boot class path is the platform's of API 23, so a call of anything newer, or of a desktop's class, does not compile.
javac -nowarn -Xlint:-options -source 8 -target 8 -encoding UTF-8 -bootclasspath "$toolchain/android.jar" \
  -cp "$toolchain/executorch.jar" -d classes "${sources[@]}" 2>javac.log || { cat javac.log >&2; exit 1; }
java -cp "$toolchain/dx.jar" com.android.dx.command.Main --dex --min-sdk-version=26 --output=apk/classes.dex \
  classes "$toolchain/executorch.jar"
cp -r "$toolchain/lib" apk/lib
cp base.apk unaligned.apk
find apk -exec touch -t 198001010000 {} +     # the same sources give the same archive
(cd apk && find . -type f | sort | sed 's|^\./||' | zip -qX -9 ../unaligned.apk -@)
zipalign -f -p 4 unaligned.apk aligned.apk
if [ ! -f "$out/debug.jks" ]; then
  keytool -genkeypair -keystore "$out/debug.jks" -storepass android -keypass android -alias androiddebugkey \
    -dname 'CN=Android Debug,O=Android,C=US' -keyalg RSA -keysize 2048 -validity 10000 2>keytool.log || { cat keytool.log >&2; exit 1; }
fi
apksigner sign --ks "$out/debug.jks" --ks-pass pass:android --key-pass pass:android --out "$out/coda.apk" aligned.apk
apksigner verify --min-sdk-version 26 "$out/coda.apk"
"$demo/tools/resolve.py" "$out/coda.apk" "$toolchain/android.jar"
ls -l "$out/coda.apk"
