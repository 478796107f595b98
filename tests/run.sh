#!/usr/bin/env bash
# Sets up what is missing, builds everything and runs every test; the last lines are ctest's summary.
set -euo pipefail
# shellcheck source=app/setup.sh
. "$(dirname "${BASH_SOURCE[0]}")/../app/setup.sh"
setUp
configure
# shellcheck disable=SC2119
build # everything
exec 9>&-
exec ctest --test-dir "$buildDir" --output-on-failure -j2
