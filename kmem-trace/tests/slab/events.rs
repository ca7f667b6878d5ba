//! Single events of slab objects say what was found out of each: who pays, who asked, why nobody does.

use serde_json::Value;

use crate::{
    attribution::tracer,
    causes::{booted_with_nokmem, own},
    support::{lines, load},
};

#[test]
fn each_event_names_who_pays_who_asked_and_why_nobody_does() {
    let group = own("single");
    let Some(tracer) = tracer(&format!(
        "-c {} --events slab.alloc,slab.free --ring 16384",
        group.name
    )) else {
        return;
    };
    let held = load::start(&group, "pipes=100 inotify=100");
    let is = |line: &Value, role: &str, key: &str| {
        line["role"] == role && line[key] == group.name.as_str()
    };
    let paid = if booted_with_nokmem() {
        "nokmem"
    } else {
        "charged"
    };
    let file = tracer.event("a file of the load", |line| {
        is(line, "slab.alloc", "asker") && line["cache"] == "filp"
    });
    assert_eq!(file["cause"], paid, "{file}");
    if paid == "charged" {
        assert_eq!(file["payer"], group.name.as_str(), "{file}");
        assert_eq!(file["payer_id"], file["asker_id"], "{file}");
    }
    assert!(
        file["bytes"].as_u64().is_some_and(|bytes| bytes >= 192),
        "{file}"
    );
    assert!(
        file["call_site"]
            .as_str()
            .is_some_and(|site| site.contains("alloc") && site.contains('+')),
        "{file}"
    );
    // Neither the cache nor the call opted in.
    let unpaid = tracer.event("something that nobody pays for", |line| {
        is(line, "slab.alloc", "asker") && line["cause"] == "not-accountable"
    });
    assert!(unpaid.get("payer").is_none(), "{unpaid}");
    held.end();
    if paid == "charged" {
        let gone = tracer.event("a file of the load that goes", |line| {
            is(line, "slab.free", "payer") && line["cache"] == "filp"
        });
        assert_eq!(gone["cause"], "charged", "{gone}");
        assert!(gone.get("asker").is_none(), "{gone}");
    }
    let ended = tracer.end();
    ended.assert_fine();
    for event in lines::of_type(&ended.lines, "event") {
        if event["role"] == "slab.alloc" {
            assert!(event["cause"].is_string(), "{event}");
        }
    }
}
