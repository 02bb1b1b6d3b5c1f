//! What is on the wire is what the table says: `proto/cri.proto`, as compiled,
//! against `proto/cri-v1-wire.tsv`, both ways.

use std::collections::BTreeSet;

use berth::proto::cri::DESCRIPTORS;
use prost::Message;
use prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet,
    field_descriptor_proto::{Label, Type},
};

/// One line of the table: kind, owner, name, number, type or input, label or output.
type Row = [String; 6];

const TABLE: &str = include_str!("../proto/cri-v1-wire.tsv");

#[test]
fn the_descriptors_are_the_table() {
    let table = table();
    let compiled = compiled();
    let missing: Vec<_> = table.difference(&compiled).collect();
    let extra: Vec<_> = compiled.difference(&table).collect();
    assert!(
        missing.is_empty() && extra.is_empty(),
        "in the table only: {missing:#?}\nin proto/cri.proto only: {extra:#?}"
    );
}

#[test]
fn nothing_was_lost_on_the_way_into_the_sets() {
    let count = |kind: &str| compiled().iter().filter(|row| row[0] == kind).count();
    assert_eq!(count("rpc"), 43);
    assert_eq!(count("field"), 478);
    // A table with a line twice would hide a line that is missing.
    assert_eq!(TABLE.lines().count() - 1, table().len());
}

fn table() -> BTreeSet<Row> {
    let mut rows = BTreeSet::new();
    for line in TABLE.lines().skip(1) {
        let cells: Vec<String> = line.split('\t').map(str::to_owned).collect();
        rows.insert(Row::try_from(cells).unwrap_or_else(|cells| panic!("not six columns: {cells:?}")));
    }
    rows
}

fn compiled() -> BTreeSet<Row> {
    let set = FileDescriptorSet::decode(DESCRIPTORS).expect("descriptors decode");
    let mut rows = BTreeSet::new();
    for file in set.file.iter().filter(|file| file.package() == "runtime.v1") {
        services(file, &mut rows);
        for kind in &file.enum_type {
            values(kind, kind.name(), &mut rows);
        }
        for message in &file.message_type {
            fields(message, &mut rows);
        }
    }
    rows
}

fn services(file: &FileDescriptorProto, rows: &mut BTreeSet<Row>) {
    for service in &file.service {
        for method in &service.method {
            assert!(
                !method.client_streaming(),
                "{} takes a stream, the table has no such thing",
                method.name()
            );
            let stream = if method.server_streaming() { "stream " } else { "" };
            rows.insert(row(
                "rpc",
                service.name(),
                method.name(),
                "",
                bare(method.input_type()),
                &format!("{stream}{}", bare(method.output_type())),
            ));
        }
    }
}

fn values(kind: &EnumDescriptorProto, owner: &str, rows: &mut BTreeSet<Row>) {
    for value in &kind.value {
        rows.insert(row(
            "enum",
            owner,
            value.name(),
            &value.number().to_string(),
            "",
            "",
        ));
    }
}

fn fields(message: &DescriptorProto, rows: &mut BTreeSet<Row>) {
    for kind in &message.enum_type {
        values(kind, &format!("{}.{}", message.name(), kind.name()), rows);
    }
    for nested in &message.nested_type {
        assert!(
            nested.options.as_ref().is_some_and(|o| o.map_entry()),
            "{}.{} is nested, the table has no such thing",
            message.name(),
            nested.name()
        );
    }
    if message.field.is_empty() {
        rows.insert(row("message", message.name(), "", "", "", ""));
    }
    for field in &message.field {
        let (kind, label) = type_and_label(message, field);
        rows.insert(row(
            "field",
            message.name(),
            field.name(),
            &field.number().to_string(),
            &kind,
            label,
        ));
    }
}

fn type_and_label(message: &DescriptorProto, field: &FieldDescriptorProto) -> (String, &'static str) {
    if let Some(entry) = map_entry(message, field) {
        let kinds: Vec<_> = entry.field.iter().map(type_name).collect();
        return (format!("map<{}>", kinds.join(",")), "");
    }
    let deprecated = field.options.as_ref().is_some_and(|o| o.deprecated());
    let label = match (field.label(), deprecated) {
        (Label::Repeated, false) => "repeated",
        (Label::Repeated, true) => "repeated deprecated",
        (_, true) => "deprecated",
        (_, false) if field.proto3_optional() => "optional",
        (_, false) => "",
    };
    (type_name(field), label)
}

/// The message that protoc makes for a map field: `labels` has `LabelsEntry`.
fn map_entry<'a>(message: &'a DescriptorProto, field: &FieldDescriptorProto) -> Option<&'a DescriptorProto> {
    let last = field.type_name().rsplit('.').next()?;
    message
        .nested_type
        .iter()
        .find(|nested| nested.name() == last && nested.options.as_ref().is_some_and(|o| o.map_entry()))
}

fn type_name(field: &FieldDescriptorProto) -> String {
    match field.r#type() {
        Type::Message | Type::Enum => bare(field.type_name()).into(),
        scalar => scalar.as_str_name().trim_start_matches("TYPE_").to_lowercase(),
    }
}

/// Descriptors write ".runtime.v1.Mount".
fn bare(name: &str) -> &str {
    name.trim_start_matches('.')
}

fn row(kind: &str, owner: &str, name: &str, number: &str, input: &str, output: &str) -> Row {
    [kind, owner, name, number, input, output].map(str::to_owned)
}
