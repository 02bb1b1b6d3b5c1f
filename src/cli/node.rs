//! `version` and `info`: the node itself.

use serde_json::{Map, Value, json};

use super::{Client, Error, arguments, error::call, table};
use crate::proto::cri;

pub async fn version(mut client: Client) -> Result<u8, Error> {
    let answer = client
        .runtime
        .version(cri::VersionRequest::default())
        .await
        .map_err(call("ask for the version of", "berthd"))?
        .into_inner();
    let rows = [
        ("berth", env!("CARGO_PKG_VERSION")),
        (&*answer.runtime_name, &*answer.runtime_version),
        ("CRI", &*answer.runtime_api_version),
    ];
    let rows: Vec<_> = rows
        .iter()
        .map(|(a, b)| vec![(*a).to_owned(), (*b).to_owned()])
        .collect();
    table::print(&table::format(&["NAME", "VERSION"], &rows))?;
    Ok(0)
}

pub async fn info(mut client: Client, args: &arguments::Info) -> Result<u8, Error> {
    let answer = client
        .runtime
        .status(cri::StatusRequest {
            verbose: args.output.is_some(),
        })
        .await
        .map_err(call("ask for the status of", "berthd"))?
        .into_inner();
    if args.output.is_some() {
        table::print(&format!("{:#}\n", as_json(&answer)))?;
        return Ok(0);
    }
    let conditions = answer.status.map(|status| status.conditions).unwrap_or_default();
    let rows: Vec<_> = conditions
        .iter()
        .map(|c| {
            vec![
                c.r#type.clone(),
                yes(c.status).into(),
                c.reason.clone(),
                c.message.clone(),
            ]
        })
        .collect();
    table::print(&table::format(&["CONDITION", "MET", "REASON", "MESSAGE"], &rows))?;
    let rows: Vec<_> = answer
        .runtime_handlers
        .iter()
        .map(|handler| {
            let features = handler.features.unwrap_or_default();
            let name = if handler.name.is_empty() {
                "(default)"
            } else {
                &handler.name
            };
            vec![
                name.to_owned(),
                yes(features.recursive_read_only_mounts).into(),
                yes(features.user_namespaces).into(),
            ]
        })
        .collect();
    table::print("\n")?;
    table::print(&table::format(
        &["HANDLER", "RECURSIVE READ-ONLY MOUNTS", "USER NAMESPACES"],
        &rows,
    ))?;
    Ok(0)
}

fn yes(value: bool) -> &'static str {
    if value { "yes" } else { "no" }
}

fn as_json(answer: &cri::StatusResponse) -> Value {
    let conditions: Vec<_> = answer
        .status
        .iter()
        .flat_map(|status| &status.conditions)
        .map(|c| json!({"type": c.r#type, "status": c.status, "reason": c.reason, "message": c.message}))
        .collect();
    let handlers: Vec<_> = answer
        .runtime_handlers
        .iter()
        .map(|handler| {
            let features = handler.features.unwrap_or_default();
            json!({
                "name": handler.name,
                "recursiveReadOnlyMounts": features.recursive_read_only_mounts,
                "userNamespaces": features.user_namespaces,
            })
        })
        .collect();
    // Values that are JSON themselves are shown as such.
    let info: Map<String, Value> = answer
        .info
        .iter()
        .map(|(key, value)| {
            let parsed = serde_json::from_str(value).unwrap_or_else(|_| Value::from(value.as_str()));
            (key.clone(), parsed)
        })
        .collect();
    json!({"conditions": conditions, "handlers": handlers, "info": info})
}
