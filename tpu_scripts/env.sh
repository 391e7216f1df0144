# shellcheck shell=bash
# What the scripts read, with defaults. Export variables, or write them into a file and name it:
# KD_ENV=my_pod.env tpu_scripts/create.sh. An empty one must be set where a script needs it.

if [[ -n ${KD_ENV:-} ]]; then
    # shellcheck source=/dev/null
    source "$KD_ENV"
fi

: "${KD_PROJECT:=}"            # Google Cloud project
: "${KD_ZONE:=}"               # us-east5-b
: "${KD_NAME:=}"               # of the queued resource, the instance group or the workload
: "${KD_ACCELERATOR:=}"        # v4-32, v5litepod-256, v5p-256, v6e-256; xpk also tpu7x-4x4x8
: "${KD_TOPOLOGY:=}"           # chips of the slice, 4x4x8 (mig)
: "${KD_BACKEND:=qr}"          # qr | mig | xpk
: "${KD_CAPACITY:=on-demand}"  # on-demand | spot | reserved | flex-start
: "${KD_SLICES:=1}"            # slices of one job (qr, xpk)
: "${KD_RESERVATION:=}"        # name of a reservation (reserved; optional with qr)
: "${KD_MAX_RUN:=24h}"         # flex-start: how long the slice may run, 168h at most
: "${KD_VALID_FOR:=24h}"       # flex-start with qr: how long the request may wait
: "${KD_CLUSTER:=}"            # GKE cluster (xpk)
: "${KD_BUCKET:=}"             # gs://...
: "${KD_REMOTE:=kd_jax}"       # folder of the code on the workers, under the home folder
: "${KD_WORKDIR:=}"            # folder of the runs on the workers; all must see the same one
: "${KD_DISK:=200GB}"          # boot disk (mig)
: "${KD_SSH_FLAGS:=}"          # more flags for ssh and scp of gcloud: --internal-ip
: "${KD_POLL:=30}"             # seconds between two looks at a state, and between two attempts
: "${KD_RETRIES:=3}"           # attempts of a request to the cloud

# Defaults that depend on the generation. For mig, KD_RUNTIME is the image family. Compute Engine
# also lists some of these machine types with the ending -tpu; which of the two a project may use
# could not be confirmed without one: set KD_MACHINE if the template is refused.
case $KD_BACKEND:${KD_ACCELERATOR%%-*} in
    qr:v4) : "${KD_RUNTIME:=tpu-ubuntu2204-base}" ;;
    qr:v5litepod) : "${KD_RUNTIME:=v2-alpha-tpuv5-lite}" ;;
    qr:v5p) : "${KD_RUNTIME:=v2-alpha-tpuv5}" ;;
    qr:v6e) : "${KD_RUNTIME:=v2-alpha-tpuv6e}" ;;
    mig:v5p)
        : "${KD_RUNTIME:=ubuntu-accel-2204-amd64-tpu-v5e-v5p-v6e}"
        : "${KD_MACHINE:=ct5p-hightpu-4t}"
        ;;
    mig:v6e)
        : "${KD_RUNTIME:=ubuntu-accel-2204-amd64-tpu-v5e-v5p-v6e}"
        : "${KD_MACHINE:=ct6e-standard-4t}"
        ;;
    mig:tpu7x)
        : "${KD_RUNTIME:=ubuntu-accel-2404-amd64-tpu-tpu7x}"
        : "${KD_MACHINE:=tpu7x-standard-4t}"
        ;;
esac
: "${KD_RUNTIME:=}"
: "${KD_MACHINE:=}"
