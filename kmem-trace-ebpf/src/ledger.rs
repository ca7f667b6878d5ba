//! Charges and uncharges: what is done with an event of the ledger's roles, whichever mechanism
//! delivered it.

use kmem_trace_ebpf::{
    config::ITEMS,
    record::{
        CounterRecord, KIND_COUNTER, KIND_STATE, KIND_USER_CHARGE, OP_REFUSED, OP_UNCHARGE,
        StateRecord, UserChargeRecord,
    },
    totals::{
        LOST_MAP_FULL, LOST_UNREAD, PAGES_MOVED, ROLE_CHARGE, ROLE_STATE, ROLE_UNCHARGE,
        ROLE_USER_CHARGE, SEEN_ELSEWHERE, SLOT_STAT_ANON, SWITCH_NO_STREAM,
    },
};

use crate::{
    maps::{Context, add, header, lose, send, switched, tally, totals},
    memcg::{cgroup_of, id_of, is_traced, note_ancestry, owner},
    read::config,
};

/// A page counter moved (or refused to).
#[inline(always)]
pub fn counter_changed(ctx: Context, counter: u64, pages: u64, op: u8) {
    let role = if op == OP_UNCHARGE {
        ROLE_UNCHARGE
    } else {
        ROLE_CHARGE
    };
    let Some((slot, memcg)) = owner(counter) else {
        tally(SEEN_ELSEWHERE, 1);
        return;
    };
    let Some(cgroup) = cgroup_of(memcg) else {
        lose(LOST_UNREAD, role, pages);
        return;
    };
    if !is_traced(cgroup) {
        return;
    }
    let Some(cgroup_id) = id_of(cgroup) else {
        lose(LOST_UNREAD, role, pages);
        return;
    };
    if op != OP_REFUSED {
        match totals(cgroup_id) {
            Some((place, new)) => {
                if new {
                    note_ancestry(memcg, cgroup_id);
                }
                // Interrupts on this CPU add to the same place; one instruction each.
                unsafe {
                    let sum = if op == OP_UNCHARGE {
                        (&raw mut (*place).uncharged).cast::<u64>().add(slot & 3)
                    } else {
                        (&raw mut (*place).charged).cast::<u64>().add(slot & 3)
                    };
                    add(sum, pages);
                    if pages > (*place).largest {
                        (*place).largest = pages;
                    }
                }
            }
            None => {
                lose(LOST_MAP_FULL, role, pages);
            }
        }
    }
    if config!(stream_counters) == 1 && !switched(SWITCH_NO_STREAM) {
        send::<CounterRecord>(ctx, role, |record| unsafe {
            record.write(CounterRecord {
                header: header(KIND_COUNTER, size_of::<CounterRecord>()),
                cgroup_id,
                pages,
                slot: slot as u8,
                op,
                reserved: [0; 6],
            });
        });
    }
}

/// The user charge path returned `result` for `memcg`.
#[inline(always)]
pub fn user_charged(ctx: Context, memcg: u64, pages: u32, gfp: u32, result: i32) {
    let Some(cgroup) = cgroup_of(memcg) else {
        tally(LOST_UNREAD + ROLE_USER_CHARGE, 1);
        return;
    };
    if !is_traced(cgroup) {
        return;
    }
    let Some(cgroup_id) = id_of(cgroup) else {
        tally(LOST_UNREAD + ROLE_USER_CHARGE, 1);
        return;
    };
    if let Some((place, new)) = totals(cgroup_id) {
        if new {
            note_ancestry(memcg, cgroup_id);
        }
        unsafe {
            if result == 0 {
                add(&raw mut (*place).user_charges, 1);
            } else {
                add(&raw mut (*place).user_refusals, 1);
            }
        }
    } else {
        tally(LOST_MAP_FULL + ROLE_USER_CHARGE, 1);
    }
    if config!(stream_user_charges) == 1 && !switched(SWITCH_NO_STREAM) {
        send::<UserChargeRecord>(ctx, ROLE_USER_CHARGE, |record| unsafe {
            record.write(UserChargeRecord {
                header: header(KIND_USER_CHARGE, size_of::<UserChargeRecord>()),
                cgroup_id,
                pages,
                result,
                gfp,
                reserved: 0,
            });
        });
    }
}

/// A `memory.stat` item of `memcg`, 0 where an event does not hand it out, moved by `pages`.
#[inline(always)]
pub fn state_changed(
    ctx: Context,
    memcg: u64,
    cgroup_id: u64,
    item: i32,
    pages: i32,
    lruvec: bool,
) {
    let mut group = 0;
    while group < 4 {
        let mut i = 0;
        while i < ITEMS {
            let wanted = if lruvec {
                config!(lruvec_items[group][i])
            } else {
                config!(state_items[group][i])
            };
            if wanted >= 0 && wanted == item {
                count_state(memcg, cgroup_id, SLOT_STAT_ANON + group, pages);
            }
            i += 1;
        }
        group += 1;
    }
    if config!(stream_state) == 1 && !switched(SWITCH_NO_STREAM) {
        send::<StateRecord>(ctx, ROLE_STATE, |record| unsafe {
            record.write(StateRecord {
                header: header(KIND_STATE, size_of::<StateRecord>()),
                cgroup_id,
                item,
                pages,
            });
        });
    }
}

#[inline(always)]
fn count_state(memcg: u64, cgroup_id: u64, slot: usize, pages: i32) {
    let amount = u64::from(pages.unsigned_abs());
    tally(PAGES_MOVED, amount);
    let Some((place, new)) = totals(cgroup_id) else {
        lose(LOST_MAP_FULL, ROLE_STATE, amount);
        return;
    };
    // One that was gone before the trace began has no directory to tell below whom it is.
    if new && memcg != 0 && config!(can_read) == 1 {
        note_ancestry(memcg, cgroup_id);
    }
    unsafe {
        let sums = if pages < 0 {
            &raw mut (*place).uncharged
        } else {
            &raw mut (*place).charged
        };
        add(sums.cast::<u64>().add(slot & 7), amount);
        if amount > (*place).largest {
            (*place).largest = amount;
        }
    }
}
