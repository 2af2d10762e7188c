#!/usr/bin/env bash
# Installs the Debian 12 packages that some tests need and pip cannot provide. Needs root or sudo.
# Without them `make test` still runs and skips those tests, saying why.
set -euo pipefail

packages=(
    ceph-common       # tests/ceph_server.py: a real S3 server
    ceph-mon          # the same
    ceph-osd          # the same
    chromium          # tests/browser: opens the report
    fonts-dejavu-core # tests/browser: a font, without which chromium draws empty boxes
    git               # tests/unit/test_house.py: asks git which files it ignores
    iproute2          # tests/integration/test_training_network.py: hosts and their cables
    make              # .ci/run
    python3.11        # everything
    python3-venv      # `make venv`
    radosgw           # tests/ceph_server.py
)

if dpkg-query --show --showformat='${db:Status-Status}\n' "${packages[@]}" 2>/dev/null |
    awk '$0 != "installed" { bad = 1 } END { exit bad || NR != '"${#packages[@]}"' }'; then
    echo "system packages: all installed"
    exit 0
fi

as_root=()
if [[ ${EUID} -ne 0 ]]; then
    if ! command -v sudo >/dev/null; then
        echo "error: not root and no sudo; run as root: apt-get install ${packages[*]}" >&2
        exit 1
    fi
    as_root=(sudo --non-interactive)
fi
apt_get=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get --quiet --yes)
"${apt_get[@]}" update
"${apt_get[@]}" install --no-install-recommends "${packages[@]}"
