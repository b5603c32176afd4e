//! What each `format` of a JSON schema admits, as expressions.
//!
//! They are narrower than their standards where the usual readers (Python's own types, pydantic) are: no year
//! 0, no 29 February in other years than leap years, no leap second, digits with an end. A text that the
//! grammar let through and its reader refuses would be an answer that only looks right.

/// RFC 3339, section 5.6: `full-date`, years 0001 to 9999.
const DATE: &str = concat!(
    "(?:",
    "(?:[0-9]{3}[1-9]|[0-9]{2}[1-9]0|[0-9][1-9]00|[1-9]000)-",
    "(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))",
    "|(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)-02-29",
    ")"
);
/// `partial-time`: microseconds are as fine as Python's clock.
const CLOCK: &str = "(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\\.[0-9]{1,6})?";
/// `time-offset`.
const OFFSET: &str = "(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])";
/// RFC 3339, appendix A; numbers short enough for a `timedelta`.
const DURATION: &str = concat!(
    "P(?:",
    "[0-9]{1,4}W|",
    "(?:[0-9]{1,4}Y(?:[0-9]{1,4}M(?:[0-9]{1,4}D)?)?|[0-9]{1,4}M(?:[0-9]{1,4}D)?|[0-9]{1,4}D)(?:T{T})?|T{T}",
    ")"
);
const DURATION_TIME: &str =
    "(?:[0-9]{1,4}H(?:[0-9]{1,4}M(?:[0-9]{1,4}S)?)?|[0-9]{1,4}M(?:[0-9]{1,4}S)?|[0-9]{1,4}S)";
const UUID: &str = "[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}";
const OCTET: &str = "(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])";
/// RFC 1123: a label has at most 63 characters.
const LABEL: &str = "[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?";
/// A label that URL parsers take for no number and no punycode.
const NAME: &str = "[a-zA-Z](?:-?[a-zA-Z0-9]){0,30}";
/// RFC 5322's `dot-atom`, at most about 64 characters (RFC 5321).
const LOCAL: &str = "[a-zA-Z0-9!#$%&'*+/=?^_`{|}~-]{1,40}(?:\\.[a-zA-Z0-9!#$%&'*+/=?^_`{|}~-]{1,10}){0,2}";

/// The expression of a format, for the whole text; `None` for those that are not known.
pub(super) fn expression(name: &str) -> Option<String> {
    let time = format!("{CLOCK}{OFFSET}");
    Some(match name {
        "date" => DATE.into(),
        "time" => time,
        "date-time" => format!("{DATE}T{time}"),
        "duration" => DURATION.replace("{T}", DURATION_TIME),
        "uuid" => UUID.into(),
        "ipv4" => ipv4(),
        "ipv6" => ipv6(),
        "hostname" => format!("{LABEL}(?:\\.{LABEL}){{0,3}}"),
        "email" => format!("{LOCAL}@{NAME}(?:\\.{NAME}){{0,2}}\\.[a-zA-Z]{{2,24}}"),
        "uri" => uri(),
        "unknown" => "(?s:.*)".into(),
        _ => return None,
    })
}

fn ipv4() -> String {
    format!("{OCTET}(?:\\.{OCTET}){{3}}")
}

/// RFC 4291, section 2.2, without the form that ends in an IPv4 address.
fn ipv6() -> String {
    const GROUP: &str = "[0-9a-fA-F]{1,4}";
    let mut forms = vec![format!("(?:{GROUP}:){{7}}{GROUP}"), format!("::(?:{GROUP}(?::{GROUP}){{0,6}})?")];
    for before in 1..=7_usize {
        let head = format!("{GROUP}(?::{GROUP}){{{}}}", before - 1);
        forms.push(match 7 - before {
            0 => format!("{head}::"),
            1 => format!("{head}::(?:{GROUP})?"),
            after => format!("{head}::(?:{GROUP}(?::{GROUP}){{0,{}}})?", after - 1),
        });
    }
    forms.join("|")
}

/// RFC 3986: a scheme with an authority, whose host is a name or an IPv4 address and whose port a port may
/// be; or one of the schemes that have none.
fn uri() -> String {
    const PCHAR: &str = "(?:[a-zA-Z0-9._~!$&'()*+,;=:@-]|%[0-9a-fA-F]{2})";
    let path = format!("(?:/{PCHAR}*)*");
    let port = "(?::(?:6[0-4][0-9]{3}|[1-5][0-9]{4}|[1-9][0-9]{0,3}))?";
    let host = format!("(?:{NAME}(?:\\.{NAME})*|{})", ipv4());
    let authority = format!("[a-zA-Z][a-zA-Z0-9+.-]{{0,15}}://{host}{port}{path}");
    let bare = format!("(?:urn:[a-z]{{2,31}}:|tag:|data:|tel:|news:|mailto:|doi:){PCHAR}+|file://{path}");
    format!("(?:{authority}|{bare})(?:\\?(?:{PCHAR}|[/?])*)?(?:#(?:{PCHAR}|[/?])*)?")
}
