#!/usr/bin/env bash
# Sets up what is missing, builds, and opens Keepsight on the default model.
#   bash app/run.sh [keepsight arguments]   e.g. a session: bash app/run.sh out/sample.keep
#   bash app/run.sh --build-only            stops after the build
# Without a display it runs the sample comparison and leaves figures, tables and a session in out/.
set -euo pipefail
# shellcheck source=app/setup.sh
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

needsNoWindow() { # of these arguments: such a call ends by itself without a display
    local argument
    for argument in "$@"; do
        case $argument in
        export | --screenshot | --screenshot=* | --help | -h | --version | -v) return 0 ;;
        esac
    done
    return 1
}

sampleComparison() {
    local out=$root/out cli=$buildDir/bin/keepsight-cli figure
    mkdir -p "$out"
    rm -f "$out"/sample.* "$out"/sample-*
    "$cli" score --text-file "$root/resources/texts/lighthouse.txt" --policy full --policy snapkv:window=16 --compression-ratio 0.5 \
        --session "$out/sample.keep" --json "$out/sample.json" --csv "$out/sample.csv" || die "the sample comparison failed: its message is above"
    export QT_QPA_PLATFORM=offscreen
    for figure in retained attention ppl tpot memory; do
        "$buildDir/bin/keepsight" export "$out/sample.keep" --figure "$figure" --layer 15 --head 1 --width double --format pdf \
            --out "$out/sample-$figure.pdf" || die "the figure $figure failed: its message is above"
    done
    "$buildDir/bin/keepsight" "$out/sample.keep" --screenshot "$out/sample-window.png" --view window --size 1600x1000 ||
        die "the screenshot failed: its message is above"
    say "left in $out:"
    (cd "$out" && ls -1 sample.* sample-*)
}

buildOnly=
arguments=()
for argument in "$@"; do
    if [[ $argument == --build-only ]]; then buildOnly=1; else arguments+=("$argument"); fi
done

setUp
configure
build keepsight keepsight-cli
exec 9>&- # the lock of set-up and build
[[ $buildOnly ]] && exit 0
if [[ ${DISPLAY:-} || ${WAYLAND_DISPLAY:-} ]]; then
    exec "$buildDir/bin/keepsight" "${arguments[@]}"
elif needsNoWindow "${arguments[@]}"; then
    QT_QPA_PLATFORM=offscreen exec "$buildDir/bin/keepsight" "${arguments[@]}"
fi
say "no display (DISPLAY and WAYLAND_DISPLAY are empty): running the sample comparison without a window"
sampleComparison
