// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * For tests only: functions with the names and signatures that old kernels charge memory and set
 * kernel memory limits with, so that kmem-trace's programs can be proved on kernels that cannot be
 * booted any more. They do nothing but take their arguments and return what they were told to.
 *
 *   3.10 (RHEL 7)  __mem_cgroup_try_charge, memcg_update_kmem_limit(cgroup, value)
 *   4.5 - 5.15     memcg_update_kmem_max(memcg, pages)
 *
 * They are called by a write to /proc/kmem_trace_legacy, always for the memory cgroup of the
 * writing task:
 *
 *   charge GFP PAGES RESULT     limit BYTES RESULT     max PAGES RESULT
 *
 * Built by `cargo xtask module`.
 */
#include <linux/cgroup.h>
#include <linux/memcontrol.h>
#include <linux/mm_types.h>
#include <linux/module.h>
#include <linux/proc_fs.h>
#include <linux/sched.h>
#include <linux/uaccess.h>

static int result;

/* 3.10: without a cgroup in *ptr, that of mm is charged, and handed back there. */
int __mem_cgroup_try_charge(struct mm_struct *mm, gfp_t gfp_mask, unsigned int nr_pages,
			    struct mem_cgroup **ptr, bool oom);
noinline __noclone int __mem_cgroup_try_charge(struct mm_struct *mm, gfp_t gfp_mask,
					       unsigned int nr_pages, struct mem_cgroup **ptr,
					       bool oom)
{
	if (!*ptr)
		*ptr = get_mem_cgroup_from_mm(mm);
	/* As in 3.10, which gives no cgroup back where it refuses. */
	if (READ_ONCE(result)) {
		mem_cgroup_put(*ptr);
		*ptr = NULL;
	}
	return READ_ONCE(result);
}

int memcg_update_kmem_limit(struct cgroup *cont, u64 val);
noinline __noclone int memcg_update_kmem_limit(struct cgroup *cont, u64 val)
{
	barrier();
	return READ_ONCE(result);
}

static __attribute__((noipa)) int memcg_update_kmem_max(struct mem_cgroup *memcg,
							unsigned long max)
{
	barrier();
	return READ_ONCE(result);
}

static void call_charge(gfp_t gfp_mask, unsigned int nr_pages)
{
	struct mem_cgroup *memcg = NULL;

	__mem_cgroup_try_charge(current->mm, gfp_mask, nr_pages, &memcg, true);
	mem_cgroup_put(memcg);
}

static ssize_t trigger(struct file *file, const char __user *from, size_t len, loff_t *pos)
{
	struct mem_cgroup *memcg;
	unsigned long long value;
	unsigned int gfp, pages;
	char text[64];

	if (len >= sizeof(text))
		return -EINVAL;
	if (copy_from_user(text, from, len))
		return -EFAULT;
	text[len] = 0;

	if (sscanf(text, "charge %x %u %d", &gfp, &pages, &result) == 3) {
		call_charge((__force gfp_t)gfp, pages);
		return len;
	}
	memcg = get_mem_cgroup_from_mm(current->mm);
	if (!memcg)
		return -ESRCH;
	if (sscanf(text, "limit %llu %d", &value, &result) == 2)
		memcg_update_kmem_limit(memcg->css.cgroup, value);
	else if (sscanf(text, "max %llu %d", &value, &result) == 2)
		memcg_update_kmem_max(memcg, value);
	else
		len = -EINVAL;
	mem_cgroup_put(memcg);
	return len;
}

static const struct proc_ops operations = {
	.proc_write = trigger,
};

static int __init start(void)
{
	return proc_create("kmem_trace_legacy", 0200, NULL, &operations) ? 0 : -ENOMEM;
}

static void __exit stop(void)
{
	remove_proc_entry("kmem_trace_legacy", NULL);
}

module_init(start);
module_exit(stop);
MODULE_DESCRIPTION("Charge and limit functions of old kernels, for kmem-trace's tests");
MODULE_LICENSE("Dual MIT/GPL");
