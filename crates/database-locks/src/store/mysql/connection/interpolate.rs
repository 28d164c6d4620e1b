//! Statements as text, for a server that has reached its limit of prepared statements (error 1461).
//!
//! Parameters are written as numbers or hexadecimal literals, so that no quote, backslash, SQL mode
//! or character set of the session can change the meaning of a value.

use mysql_async::{Params, Value};

use crate::store::api::StoreError;

/// The factor by which a literal is longer than its string.
pub(crate) const LITERAL_FACTOR: usize = 2;

/// Write the parameters into a statement of this library, whose own literals contain neither `?`
/// nor `:name`.
pub(crate) fn interpolate(statement: &str, params: &Params) -> Result<String, StoreError> {
    let mut text = String::with_capacity(statement.len() * 2);
    let (mut rest, mut place) = (statement, 0);
    while let Some(at) = rest.find(['?', ':', '\'']) {
        let (before, from) = rest.split_at(at);
        text.push_str(before);
        let length = match from.as_bytes()[0] {
            b'\'' => from[1..].find('\'').map_or(from.len(), |end| end + 2),
            b'?' => 1,
            _ => {
                1 + from[1..]
                    .find(|c| !is_of_a_name(c))
                    .unwrap_or(from.len() - 1)
            }
        };
        let (token, after) = from.split_at(length);
        rest = after;
        let value = match (token, params) {
            ("?", Params::Positional(values)) => {
                place += 1;
                values.get(place - 1)
            }
            (token, Params::Named(values)) if token.starts_with(':') => {
                values.get(&token.as_bytes()[1..])
            }
            (token, _) if token.starts_with('\'') => {
                text.push_str(token);
                continue;
            }
            _ => None,
        };
        let missing = || StoreError::rejected(format!("a statement lacks its {token}"), None);
        literal(value.ok_or_else(missing)?, &mut text);
    }
    text.push_str(rest);
    Ok(text)
}

fn is_of_a_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

fn literal(value: &Value, text: &mut String) {
    match value {
        Value::Bytes(bytes) => {
            text.push_str("_utf8mb4 X'");
            for byte in bytes {
                for digit in [byte >> 4, byte & 15] {
                    text.push(char::from(b"0123456789abcdef"[usize::from(digit)]));
                }
            }
            text.push('\'');
        }
        // Numbers and null.
        other => text.push_str(&other.as_sql(true)),
    }
}

#[cfg(test)]
mod tests {
    use mysql_async::params;

    use super::*;

    #[test]
    fn no_text_of_a_caller_stands_in_a_statement() {
        let statement = "SELECT :name, '$.name', :length FROM t WHERE at = '12:30' AND x = :x";
        let params =
            params! { "name" => "'; DROP", "length" => -5, "x" => None::<i64>, "more" => 1 };
        assert_eq!(
            interpolate(statement, &params).unwrap(),
            "SELECT _utf8mb4 X'273b2044524f50', '$.name', -5 FROM t WHERE at = '12:30' AND x = NULL"
        );
        let places = Params::Positional(vec!["é".into(), "".into()]);
        assert_eq!(
            interpolate("IN (?, ?)", &places).unwrap(),
            "IN (_utf8mb4 X'c3a9', _utf8mb4 X'')"
        );
        assert!(interpolate("IN (?, ?, ?)", &places).is_err());
    }
}
