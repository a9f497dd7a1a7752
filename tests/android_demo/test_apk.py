"""The signed APK: what it declares, that nothing it needs is lacking, and its own code run on this machine."""

from __future__ import annotations

import hashlib
import os
import re
import runpy
import struct
import subprocess
import zipfile
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import pytest
from nacl.signing import SigningKey
from safetensors.numpy import load_file, save

from device_runtime import packing
from device_runtime.bundle import BlobStore
from device_runtime.engines import open_engine
from device_runtime.engines.selftest import trial
from device_runtime.model import Model
from tests.android_demo.conftest import DEMO, JARS, HostDevice, Java, compressed, javac, needed, serving_weights
from tests.android_demo.engine_helper import manifest_of

SOURCES = Path(__file__).parent / "apk"
ABIS = ("arm64-v8a", "x86_64")
CORES_MOST = 1 << 20
"""Bytes that all of ours may add to the APK beside ExecuTorch and its libraries."""


@pytest.fixture(scope="session")
def toolchain() -> Path:
    """What tools/fetch.sh fetches; once a checkout."""
    needed("java", "javac", "aapt", "aapt2", "zipalign", "apksigner", "enjarify", "npm", "unzip", "zip", files=JARS)
    folder = DEMO.parent / "build" / "android" / "toolchain"
    done = subprocess.run([DEMO / "tools/fetch.sh", folder], capture_output=True, text=True, timeout=280, check=False)
    if done.returncode:
        told = f"NOT TESTED: the Android toolchain cannot be fetched: {done.stderr[-400:]}"
        pytest.fail(told) if os.environ.get("CODA_REQUIRE_ANDROID") else pytest.skip(told)
    return folder


@pytest.fixture(scope="session")
def apk(toolchain, tmp_path_factory) -> Path:
    return built(toolchain, tmp_path_factory.mktemp("apk"))


def built(toolchain: Path, out: Path) -> Path:
    words = [DEMO / "tools/apk.sh", toolchain, out]
    done = subprocess.run(words, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return out / "coda.apk"


def told(*words: object) -> str:
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, timeout=60, check=False)
    return done.stdout + done.stderr


def test_the_apk_declares_what_it_should_and_nothing_else(apk):
    badging = told("aapt", "dump", "badging", apk)
    assert "package: name='org.coda.app' versionCode='1' versionName='0.1.0'" in badging
    assert "sdkVersion:'26'\ntargetSdkVersion:'34'" in badging
    assert "launchable-activity: name='org.coda.app.MainActivity'" in badging
    assert "native-code: 'arm64-v8a' 'x86_64'" in badging
    asked = re.findall(r"uses-permission: name='android\.permission\.(\w+)'", badging)
    assert asked == ["INTERNET", "ACCESS_NETWORK_STATE", "RECEIVE_BOOT_COMPLETED"]
    manifest = told("aapt", "dump", "xmltree", apk, "AndroidManifest.xml")
    assert re.search(r"allowBackup\(.*\)=\(type 0x12\)0x0", manifest)
    guards = re.findall(r'permission\(0x01010006\)="android\.permission\.(\w+)"', manifest)
    assert guards == ["DUMP", "BIND_JOB_SERVICE"], "only the shell starts a benchmark, only the system a job"


def test_the_apk_is_signed_and_a_changed_one_is_refused(apk, tmp_path):
    assert "Verified using v2 scheme (APK Signature Scheme v2): true" in told("apksigner", "verify", "-v", apk)
    changed = tmp_path / "changed.apk"
    data = bytearray(apk.read_bytes())
    data[len(data) // 2] ^= 1
    changed.write_bytes(data)
    assert "DOES NOT VERIFY" in told("apksigner", "verify", changed)


def test_a_second_build_differs_in_its_signature_alone(apk, toolchain, tmp_path):
    again = built(toolchain, tmp_path)
    unsigned, same = (path.parent / "work/aligned.apk" for path in (apk, again))
    assert unsigned.read_bytes() == same.read_bytes()
    assert apk.read_bytes() != again.read_bytes(), "each build makes a debug key of its own"


def test_what_is_ours_adds_less_than_a_mebibyte(apk, toolchain):
    with zipfile.ZipFile(apk) as archive:
        ours = [info for info in archive.infolist() if not info.filename.startswith("lib/")]
        libraries = {info.filename for info in archive.infolist()} - {info.filename for info in ours}
    assert sum(info.compress_size for info in ours) < CORES_MOST
    theirs = ("libexecutorch.so", "libfbjni.so", "libc++_shared.so")
    assert libraries == {f"lib/{abi}/{name}" for abi in ABIS for name in theirs}


@pytest.mark.parametrize(
    "gone", ["lib/x86_64/libfbjni.so", "lib/arm64-v8a/libc++_shared.so", "Lcom/facebook/jni/HybridData;"]
)
def test_a_class_or_library_that_is_lacking_is_noticed(apk, toolchain, tmp_path, gone):
    resolve = runpy.run_path(str(DEMO / "tools/resolve.py"))
    assert resolve["lacking"](apk, toolchain / "android.jar") == []
    poorer = tmp_path / "poorer.apk"
    with zipfile.ZipFile(apk) as whole, zipfile.ZipFile(poorer, "w") as rest:
        for name in whole.namelist():
            if name != gone:
                data = whole.read(name)
                data = (
                    data.replace(gone.encode(), gone.replace("jni", "JNI").encode()) if name.endswith(".dex") else data
                )
                rest.writestr(name, data)
    lacking = resolve["lacking"](poorer, toolchain / "android.jar")
    assert any(Path(gone).name.rstrip(";") in each for each in lacking)


def test_a_lambda_is_noticed(toolchain, tmp_path):
    (tmp_path / "L.java").write_text("class L { Runnable r = () -> {}; }")
    javac(tmp_path / "classes", [tmp_path / "L.java"], "")
    dx = ["java", "-cp", toolchain / "dx.jar", "com.android.dx.command.Main", "--dex", "--min-sdk-version=26"]
    told(*dx, f"--output={tmp_path / 'classes.dex'}", tmp_path / "classes")
    resolve = runpy.run_path(str(DEMO / "tools/resolve.py"))
    assert resolve["Dex"]((tmp_path / "classes.dex").read_bytes()).has_lambdas


# -- the APK's own code ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OnTheApk:
    """Runs Java with the APK's dex and native libraries; see tools/run_on_jvm.sh."""

    script: list[str]
    place: list[str]

    def command(self, abi: str) -> list[str]:
        """To be followed by java's words."""
        return [self.script[0], self.script[1], abi, *self.place]

    def __call__(self, abi: str, *words: str, **properties: object) -> subprocess.CompletedProcess[str]:
        given = [f"-D{name}={value}" for name, value in {"cpuinfo": "/proc/cpuinfo", **properties}.items()]
        return subprocess.run(
            [*self.command(abi), *given, *words], capture_output=True, text=True, timeout=280, check=False
        )


@pytest.fixture(scope="session")
def vectors(published, tmp_path_factory) -> Path:
    """Each graph of the bundle as a file, its spec, made-up inputs, and what Python's ExecuTorch makes of them."""
    folder = tmp_path_factory.mktemp("vectors")
    manifest = manifest_of(published.bundle, published.trust)
    model = Model.open(manifest, open_engine("executorch"), BlobStore(published.bundle / "blobs"))
    for name, entry in manifest.graphs.items():
        (folder / f"{name}.pte").write_bytes(model.blobs.read(entry.files["executorch"].file))
        (folder / f"{name}.json").write_bytes(msgspec.json.encode(entry.spec))
        held = model.classifier if name.startswith("classifier") else model.base.dense
        largest = manifest.graphs["step"].golden.largest
        values, batch = trial(entry.spec, held, largest)
        given = {**values, **batch} | {t.name: np.array(0.1, t.dtype) for t in entry.spec.of("hyper")}
        given |= {t.name: np.zeros(t.shape, t.dtype) for t in entry.spec.of("state") if t.name not in given}
        given = {t.name: given[t.name] for t in entry.spec.inputs}
        (folder / f"{name}.in").write_bytes(save(given))
        graph = model.engine.load(folder / f"{name}.pte", entry.spec)
        (folder / f"{name}.out").write_bytes(save(graph(given)))
    return folder


@pytest.fixture(scope="session")
def on_the_apk(apk, toolchain, classpath, tmp_path_factory) -> OnTheApk:
    needed("gcc", "nm")
    work = tmp_path_factory.mktemp("jvm")
    core, tests = classpath.split(":")[:2]
    engine = [DEMO / "app/engines/executorch/org/coda/app/ExecuTorchEngine.java"]
    javac(work / "engine", engine, f"{core}:{toolchain / 'executorch.jar'}")
    javac(work / "apk", sorted(SOURCES.rglob("*.java")), f"{core}:{tests}:{work / 'engine'}:{':'.join(map(str, JARS))}")
    path = ":".join(map(str, (tests, work / "apk", *JARS)))  # the core and the engine come from the dex

    return OnTheApk([str(word) for word in (DEMO / "tools/run_on_jvm.sh", apk)], [str(work), path])


def abis() -> list[object]:
    """arm64-v8a takes qemu and a cross compiler, so it has a command of its own: `make apk-arm64`."""
    wanted = os.environ.get("CODA_ANDROID_ABI", "x86_64")
    return [pytest.param(abi, marks=() if abi == wanted else pytest.mark.skip(f"CODA_ANDROID_ABI={wanted}"))
            for abi in ABIS]  # fmt: skip


@pytest.mark.parametrize("abi", abis())
def test_the_apks_own_engine_computes_what_pythons_does(on_the_apk, vectors, tmp_path, abi):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("Features\t: fp asimd atomics\n")
    done = on_the_apk(abi, "org.junit.runner.JUnitCore", "org.coda.core.ApkTest", vectors=vectors, cpuinfo=cpuinfo)
    assert done.returncode == 0 and "OK (" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("abi", abis())
def test_the_dex_keeps_the_cores_promises(on_the_apk, abi):
    done = on_the_apk(abi, "org.junit.runner.JUnitCore", "org.coda.core.CoreTest")
    assert done.returncode == 0 and "OK (" in done.stdout, done.stdout + done.stderr


def test_the_dex_speaks_the_formats(apk, on_the_apk, published, rng):
    """dx compiles what javac made once more; a few vectors of each kind show that it means the same."""
    java = Java(*on_the_apk.command("x86_64"))
    try:
        secret = bytes(range(32))
        signature = SigningKey(secret).sign(b"data").signature
        assert java("sign", secret, b"data") == signature
        assert java("verify", java("public key", secret), b"data", signature) == b"\x01"
        assert java("blake2b", secret) == hashlib.blake2b(secret, digest_size=8).digest()
        for column in (
            rng.integers(-(2**62), 2**62, 50),
            np.array([-(2**63), 2**63 - 1, -1, 0]),
            rng.geometric(0.1, 99),
        ):
            assert java("pack", column.astype("<i8").tobytes()) == packing.pack(column)
            assert java("unpack", packing.pack(column)) == column.astype("<i8").tobytes()
        text = b" ".join(b"%d" % n for n in rng.zipf(1.4, 5000))
        for level in (1, 9, 19):
            assert java("unzstd", compressed(text, level), b"") == text
        drawn = java("random", np.array([5, 0, 3], "<i8").tobytes(), struct.pack("<i", 300))
        np.testing.assert_array_equal(
            np.frombuffer(drawn, "<i8")[:300], np.random.default_rng([5, 0, 3]).permutation(300)
        )
        numbers = [0.1, -1e-7, 5e-324, 2**-24, 1e300, True, None, "é\n", -(2**63)]
        assert java("json", msgspec.json.encode(numbers)) == msgspec.json.encode(numbers)
    finally:
        java.close()


@pytest.mark.parametrize("abi", abis())
def test_a_whole_round_by_the_apks_own_code(on_the_apk, serving, published, device, tmp_path, abi):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("Features\t: fp asimd atomics\n")
    given = {"home": tmp_path / "apk", "trust": published.trust, "history": published.history, "cpuinfo": cpuinfo}
    with serving() as (url, services):
        done = on_the_apk(abi, "org.coda.core.ApkDevice", server=url, seed=5, **given)
        assert done.returncode == 0, done.stdout + done.stderr
        report, ranked = HostDevice.lines(done.stdout)
        expected, best = device.run(server=url, history=published.history, seed=5)
        assert len(services.catalog.reports()) == 2
    assert (report["kept"], report["candidates"], report["outcome"]) == (54, 60, expected["outcome"])
    assert [phase["phase"] for phase in report["phases"]] == [phase["phase"] for phase in expected["phases"]]
    assert report["verdict"]["loss_after"] == pytest.approx(expected["verdict"]["loss_after"], abs=1e-4)
    assert list(ranked) == list(best)
    ours, theirs = (load_file(serving_weights(home)) for home in (tmp_path / "apk", device.home))
    for name, tensor in theirs.items():
        np.testing.assert_allclose(ours[name], tensor, rtol=0, atol=1e-4, err_msg=name)
