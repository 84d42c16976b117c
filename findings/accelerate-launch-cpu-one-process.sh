#!/usr/bin/env bash
# accelerate 1.15.0, accelerate launch --cpu --num_processes 2: starts one process, without RANK and WORLD_SIZE, exits 0 and says
# nothing of it. --num_processes ("the total number of processes to be launched in parallel") counts on a CPU only with
# --mpirun_hostfile, that is under mpirun. A program that shares its work among WORLD_SIZE ranks does all of it alone.
# Seen: one line, "rank None of None"; torchrun --nproc_per_node 2 gives "rank 0 of 2" and "rank 1 of 2".
# On CPUs start ranks with torchrun.
set -euo pipefail
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
python3 -m venv "$here/env"
"$here/env/bin/pip" install --quiet torch==2.13.0 accelerate==1.15.0
cd "$here"
export HF_HOME="$here/hf" OMP_NUM_THREADS=1  # no config file of this user's, which could say more
cat > said.py <<'PY'
import os

print(f"rank {os.environ.get('RANK')} of {os.environ.get('WORLD_SIZE')}", flush=True)
PY
launched=$("$here/env/bin/accelerate" launch --cpu --num_processes 2 said.py 2> asked.txt)
run=$("$here/env/bin/torchrun" --nproc_per_node 2 said.py 2> /dev/null | sort)
echo "accelerate: $launched"
echo "torchrun: ${run//$'\n'/, }"
[ "$launched" = "rank None of None" ] || { echo "accelerate now starts other ranks than one"; exit 1; }
if grep -qi "mpirun\|one process\|ignored" asked.txt; then echo "accelerate now says so"; exit 1; fi
[ "$run" = $'rank 0 of 2\nrank 1 of 2' ]
