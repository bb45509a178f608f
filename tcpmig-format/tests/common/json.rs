//! Payloads as JSON, read by a decoder of `MessagePack` that is not this crate's.

use rmpv::Value;
use serde_json::{Value as Json, json};

/// The value, with bytes in hexadecimal.
pub(crate) fn of(value: &Value) -> Json {
    match value {
        Value::Boolean(on) => json!(on),
        Value::Integer(number) => match number.as_u64() {
            Some(number) => json!(number),
            None => json!(number.as_i64().unwrap()),
        },
        Value::String(text) => json!(text.as_str().unwrap()),
        Value::Binary(bytes) => {
            let hex = bytes.iter().map(|byte| format!("{byte:02x}"));
            json!(hex.collect::<String>())
        }
        Value::Array(values) => values.iter().map(of).collect(),
        Value::Map(fields) => {
            let fields = fields.iter();
            fields
                .map(|(key, value)| (key.as_str().unwrap().to_owned(), of(value)))
                .collect()
        }
        other => panic!("{other}"),
    }
}
