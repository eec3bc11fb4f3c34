#!/usr/bin/env bash
# What `make test-slurm` needs on this machine: Slurm and munge, from Debian's or Ubuntu's packages where they are
# missing. It starts nothing: the tests start a cluster of their own, with its own files and ports, and end it.
set -euo pipefail

missing=0
for program in munged slurmctld slurmd sbatch; do
    command -v "$program" >/dev/null || missing=1
done
if [ "$missing" = 0 ]; then
    exit 0
fi
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "pcls: Slurm is not installed here; as root on Debian or Ubuntu: apt-get install slurmctld slurmd slurm-client munge" >&2
    exit 1
fi
echo "pcls: installing Debian's slurmctld, slurmd, slurm-client and munge"
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
    slurmctld slurmd slurm-client munge >/dev/null
