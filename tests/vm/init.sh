#!/bin/sh
# The first process of a guest: mounts, modules, the tests, power off. The console (ttyS0) has the kernel's messages;
# results go to ttyS1, and the status to ttyS2, so that no message of the kernel can be in their midst.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root FIREDRILL_VM=1 FIREDRILL_BIN=/usr/bin/firedrill FIREDRILL_ROOT=/ RUST_BACKTRACE=1

mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts pts /dev/pts
mount -t tmpfs shm /dev/shm
mount -t tmpfs tmp /tmp
mount -t tmpfs run /run
rm -rf /var/run && ln -s /run /var/run
mkdir -p /run/netns
mount -t cgroup2 cgroup /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
mount -t tracefs trace /sys/kernel/tracing

while read -r module; do
    insmod "$module" || echo "cannot load $module"
done </modules/order
mkdir -p /dev/net
[ -e /dev/net/tun ] || mknod /dev/net/tun c 10 200
ip link set lo up

# Outlives a reset, if it was synced: nothing is written by itself for ten minutes.
mount -t ext3 -o commit=600 /dev/vda /disk || mount -t tmpfs disk /disk

# run_test NAME OPTION...: once. A test may reset the guest after it has written `reset` to ttyS2: it is booted again,
# goes on with this very test, and skips what was done before.
run_test() {
    name=$1
    shift
    [ -e "/disk/done/$name" ] && return
    echo "=== $name"
    "/tests/$name" --test-threads=1 --show-output "$@" 2>&1 || : >/disk/failed
    mkdir -p "/disk/done/${name%/*}"
    : >"/disk/done/$name"
    sync
}

stty -F /dev/ttyS1 raw -echo
stty -F /dev/ttyS2 raw -echo
cd /tmp || exit 1
. /run.sh >/dev/ttyS1 2>&1 </dev/null
status=0
[ -e /disk/failed ] && status=1
echo "status $status" >/dev/ttyS2
sync
poweroff -f
