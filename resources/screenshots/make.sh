#!/usr/bin/env bash
# Records the sample session that the first launch shows, and draws the README's pictures from it. Needs a build (bash app/run.sh --build-only).
#   bash resources/screenshots/make.sh          pictures from the recorded sample
#   bash resources/screenshots/make.sh --record records the sample anew first (run it on an idle machine: its times are shown)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
out=resources/screenshots
export QT_QPA_PLATFORM=offscreen
if [[ ${1:-} == --record ]]; then
    build/bin/keepsight-cli score --model build/models/SmolLM2-135M-Instruct.Q4_1.gguf --text-file resources/texts/lighthouse.txt --lane full --lane snapkv:window=16@0.5 --attention-bins 72 \
        --session resources/sample.keep
fi
build/bin/keepsight resources/sample.keep --lane B --layer 12 --head 1 --screenshot $out/window.png --view window --size 1600x1000
build/bin/keepsight resources/sample.keep --lane B --layer 12 --head 1 --theme dark --screenshot $out/dark.png --view window --size 1280x800
build/bin/keepsight export resources/sample.keep --figure attention --lane B --layer 12 --head 1 --width single --format png --out $out/attention.png
build/bin/keepsight export resources/sample.keep --figure retained --lane B --width text --format png --out $out/retained.png
needle=$(mktemp -d)
trap 'rm -rf "$needle"' EXIT
build/bin/keepsight-cli needle --lengths 500:1500:500 --depths 5 --lane full --lane streaming_llm@0.7 --lane snapkv@0.7 --session "$needle/needle.keep" >/dev/null
build/bin/keepsight "$needle/needle.keep" --screenshot $out/needle.png --view needle --size 1100x420
