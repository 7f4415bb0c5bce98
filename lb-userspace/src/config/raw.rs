//! A configuration as written: a tree of values that know their place and their spelling, from TOML or from JSON.
//!
//! Not serde structs, because deserialisation stops at the first value that does not fit; here the walk goes on.

use std::borrow::Cow;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// One value.
#[derive(Debug)]
pub(super) struct Node<'a> {
    pub value: Value<'a>,
    /// Byte offset in the file; `None` when it did not come from a file.
    pub at: Option<usize>,
    /// The value as it was written.
    pub written: Cow<'a, str>,
}

#[derive(Debug)]
pub(super) enum Value<'a> {
    String(Cow<'a, str>),
    /// Saturated: no key takes numbers anywhere near the ends.
    Integer(i64),
    Array(Vec<Node<'a>>),
    Table(Vec<Entry<'a>>),
    /// Floats, booleans, dates, null: no key takes them. Holds what to call it, for example `a boolean`.
    Other(&'static str),
}

/// One key of a table.
#[derive(Debug)]
pub(super) struct Entry<'a> {
    pub key: Cow<'a, str>,
    /// Byte offset of the key.
    pub at: Option<usize>,
    pub node: Node<'a>,
}

impl<'a> Node<'a> {
    /// The value of a key, if this is a table that has it.
    pub(super) fn get(&self, key: &str) -> Option<&Node<'a>> {
        match &self.value {
            Value::Table(entries) => entries
                .iter()
                .find(|entry| entry.key == key)
                .map(|entry| &entry.node),
            _ => None,
        }
    }

    /// `a string`, `an integer` …
    pub(super) fn type_name(&self) -> &'static str {
        match &self.value {
            Value::String(_) => "a string",
            Value::Integer(_) => "an integer",
            Value::Array(_) => "an array",
            Value::Table(_) => "a table",
            Value::Other(name) => name,
        }
    }
}

pub(super) fn from_toml(text: &str) -> Result<Node<'_>, toml::de::Error> {
    let root = DeTable::parse(text)?;
    Ok(Node {
        value: Value::Table(entries(root.into_inner(), text)),
        at: Some(0),
        written: Cow::Borrowed(text),
    })
}

fn entries<'a>(table: DeTable<'a>, text: &'a str) -> Vec<Entry<'a>> {
    let entry = |(key, value): (Spanned<Cow<'a, str>>, Spanned<DeValue<'a>>)| Entry {
        at: Some(key.span().start),
        key: key.into_inner(),
        node: node(value, text),
    };
    table.into_iter().map(entry).collect()
}

fn node<'a>(value: Spanned<DeValue<'a>>, text: &'a str) -> Node<'a> {
    let span = value.span();
    Node {
        at: Some(span.start),
        written: Cow::Borrowed(text.get(span).unwrap_or_default()),
        value: match value.into_inner() {
            DeValue::String(string) => Value::String(string),
            DeValue::Integer(integer) => Value::Integer(
                i64::from_str_radix(integer.as_str(), integer.radix()).unwrap_or({
                    if integer.as_str().starts_with('-') {
                        i64::MIN
                    } else {
                        i64::MAX
                    }
                }),
            ),
            DeValue::Float(_) => Value::Other("a float"),
            DeValue::Boolean(_) => Value::Other("a boolean"),
            DeValue::Datetime(_) => Value::Other("a date"),
            DeValue::Array(items) => {
                Value::Array(items.into_iter().map(|item| node(item, text)).collect())
            }
            DeValue::Table(table) => Value::Table(entries(table, text)),
        },
    }
}

pub(super) fn from_json(value: serde_json::Value) -> Node<'static> {
    use serde_json::Value as Json;
    Node {
        at: None,
        written: Cow::Owned(value.to_string()),
        value: match value {
            Json::String(string) => Value::String(Cow::Owned(string)),
            Json::Number(number) if number.is_f64() => Value::Other("a float"),
            // An integer that is no i64 is a u64 above it.
            Json::Number(number) => Value::Integer(number.as_i64().unwrap_or(i64::MAX)),
            Json::Bool(_) => Value::Other("a boolean"),
            Json::Null => Value::Other("null"),
            Json::Array(items) => Value::Array(items.into_iter().map(from_json).collect()),
            Json::Object(object) => Value::Table(
                object
                    .into_iter()
                    .map(|(key, value)| Entry {
                        key: Cow::Owned(key),
                        at: None,
                        node: from_json(value),
                    })
                    .collect(),
            ),
        },
    }
}
