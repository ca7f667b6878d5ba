#!/bin/busybox sh
# The first process of the test machine: sets up what a booted system would have, runs
# /etc/vm-run, powers off. ttyS0 is the kernel's console, ttyS1 carries the results, ttyS2 the
# content of /out. /etc/vm.env gives TOKEN (starts each of our marker lines) and CGROUP.
export PATH=/bin:/sbin:/usr/bin:/usr/sbin HOME=/root
. /etc/vm.env

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
mount -t tmpfs -o mode=1777,size=50% tmpfs /tmp
mount -t tmpfs tmpfs /run
mount -t securityfs securityfs /sys/kernel/security
mount -t debugfs debugfs /sys/kernel/debug
mount -t tracefs tracefs /sys/kernel/tracing
mount -t bpf bpf /sys/fs/bpf

stty -F /dev/ttyS1 raw -echo
stty -F /dev/ttyS2 raw -echo
marker() { printf '\n%s %s\n' "$TOKEN" "$*" >/dev/ttyS1; }
finish() { sync; poweroff -f; sleep 60; }

# Booted to see what is done without it (`--append cgroup_disable=memory`).
memory=memory
case "$(cat /proc/cmdline)" in
*cgroup_disable=*memory*) memory= ;;
esac

# Controllers that a hierarchy of version 1 holds cannot be used in version 2.
mount_v1() {
    mount -t tmpfs -o mode=755 cgroup /sys/fs/cgroup
    for controller in $memory pids cpu,cpuacct; do
        mkdir -p "/sys/fs/cgroup/$controller"
        mount -t cgroup -o "$controller" cgroup "/sys/fs/cgroup/$controller" || return 1
    done
    mkdir -p /sys/fs/cgroup/unified
    mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified
    # Only before the first child exists, as systemd does it; newer kernels know nothing else.
    if [ "$memory" ] && [ "$(cat /sys/fs/cgroup/memory/memory.use_hierarchy)" = 0 ]; then
        echo 1 >/sys/fs/cgroup/memory/memory.use_hierarchy
    fi
}
mount_v2() {
    mount -t cgroup2 cgroup2 /sys/fs/cgroup || return 1
    for controller in $memory pids cpu; do
        echo "+$controller" >/sys/fs/cgroup/cgroup.subtree_control || return 1
    done
}
# A kernel without the version 1 controller does not list it there, or refuses the mount.
has_v1() {
    grep -q "^${memory:-pids}" /proc/cgroups || return 1
    mkdir -p /tmp/v1 && mount -t cgroup -o "${memory:-pids}" cgroup /tmp/v1 2>/dev/null || return 1
    umount /tmp/v1
}
if [ "$CGROUP" = auto ]; then
    if has_v1; then CGROUP=v1; else CGROUP=v2; fi
elif [ "$CGROUP" = v1 ] && ! has_v1; then
    marker "refused this kernel has no memory controller of cgroup version 1"
    finish
fi
if ! "mount_$CGROUP"; then
    marker "refused cannot mount the cgroup $CGROUP hierarchy"
    finish
fi
export KMEM_TRACE_VM=1 KMEM_TRACE_BIN=/bin/kmem-trace

ip link set lo up
ulimit -n 1048576
ulimit -l unlimited
echo "1024 65535" >/proc/sys/net/ipv4/ip_local_port_range
echo 65535 >/proc/sys/net/core/somaxconn

marker "ready $CGROUP $(uname -r) $(cut -d' ' -f1 /proc/uptime)"
if [ -e /etc/vm-shell ]; then
    echo "kmem-trace test machine: Linux $(uname -r), cgroup $CGROUP; exit powers it off"
    setsid cttyhack sh -l
    finish
fi
# One read of the whole script, in a shell of its own: a test that breaks it still powers off.
sh /etc/vm-run </dev/null >/dev/ttyS1 2>&1
if [ -n "$(ls -A /out)" ]; then
    tar -C /out -czf - . >/dev/ttyS2 || marker "refused cannot bring out /out"
fi
finish
