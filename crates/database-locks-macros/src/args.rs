//! What stands in the parentheses of `#[locked(…)]`.

use std::time::Duration;

use quote::ToTokens;
use syn::ext::IdentExt;
use syn::parse::{Parse, ParseStream};
use syn::{Error, Expr, ExprLit, Ident, Lit, LitStr, Path, Result, Token};

use crate::duration;

/// Every key there is, for messages.
const KEYS: &str =
    "`name`, `ttl`, `wait`, `renew_every`, `auto_renew`, `margin`, `holder`, `via` and `crate`";
/// The most characters of a name, as the core has it.
const MAX_NAME_CHARS: usize = 255;

/// The arguments, as far as they were given.
#[derive(Default)]
pub(crate) struct Args {
    pub(crate) name: Option<Expr>,
    pub(crate) ttl: Option<Length>,
    pub(crate) wait: Option<Length>,
    pub(crate) renew_every: Option<Length>,
    pub(crate) auto_renew: Option<Expr>,
    pub(crate) margin: Option<Length>,
    pub(crate) holder: Option<Expr>,
    pub(crate) via: Option<Expr>,
    /// Where the core is found, if it has another name than its own.
    pub(crate) core: Option<Path>,
}

/// How long something is.
pub(crate) enum Length {
    /// Known now.
    Fixed(Duration),
    /// Without end, known now.
    Infinite,
    /// An expression, known when the function is called.
    Computed(Expr),
}

/// What a duration that is known now may be.
struct Bounds {
    key: &'static str,
    /// In words, for messages.
    allowed: &'static str,
    /// The types of an expression.
    types: &'static str,
    least: Duration,
    most: Duration,
    endless: bool,
}

// The least and the most are the core's; what depends on two settings is left to it.
const TTL: Bounds = Bounds {
    key: "ttl",
    allowed: "\"100ms\" to ten years (\"3652.5d\"), or \"inf\"",
    types: "`Duration` or `Ttl`",
    least: Duration::from_millis(100),
    most: Duration::from_secs(315_576_000),
    endless: true,
};
const WAIT: Bounds = Bounds {
    key: "wait",
    allowed: "\"0\" (try once) or more; left out, it waits as long as it takes",
    types: "`Duration`",
    least: Duration::ZERO,
    most: Duration::MAX,
    endless: false,
};
const RENEW_EVERY: Bounds = Bounds {
    key: "renew_every",
    allowed: "\"10ms\" to half of what is trusted of the ttl",
    types: "`Duration`",
    least: Duration::from_millis(10),
    most: Duration::MAX,
    endless: false,
};
const MARGIN: Bounds = Bounds {
    key: "margin",
    allowed: "less than half of the ttl",
    types: "`Duration`",
    least: Duration::ZERO,
    most: Duration::MAX,
    endless: false,
};

impl Parse for Args {
    fn parse(input: ParseStream<'_>) -> Result<Self> {
        let mut args = Self::default();
        let mut first = true;
        while !input.is_empty() {
            if input.peek(Ident::peek_any) && input.peek2(Token![=]) {
                args.take_key(input)?;
            } else {
                args.take_bare(input, first)?;
            }
            first = false;
            if !input.is_empty() {
                input.parse::<Token![,]>()?;
            }
        }
        Ok(args)
    }
}

impl Args {
    fn take_key(&mut self, input: ParseStream<'_>) -> Result<()> {
        let key = input.call(Ident::parse_any)?;
        let equals = input.parse::<Token![=]>()?;
        if input.is_empty() || input.peek(Token![,]) {
            let text = format!("`{key}` is given no value");
            return Err(Error::new_spanned(equals, text));
        }
        match key.to_string().as_str() {
            "name" => fill(&mut self.name, &key, text(&key, input.parse()?)?),
            "ttl" => fill(&mut self.ttl, &key, length(&TTL, input.parse()?)?),
            "wait" => fill(&mut self.wait, &key, length(&WAIT, input.parse()?)?),
            "renew_every" => fill(
                &mut self.renew_every,
                &key,
                length(&RENEW_EVERY, input.parse()?)?,
            ),
            "auto_renew" => fill(&mut self.auto_renew, &key, flag(&key, input.parse()?)?),
            "margin" => fill(&mut self.margin, &key, length(&MARGIN, input.parse()?)?),
            "holder" => fill(&mut self.holder, &key, text(&key, input.parse()?)?),
            "via" => fill(&mut self.via, &key, locks(input.parse()?)?),
            "crate" => fill(&mut self.core, &key, path(input)?),
            _ => Err(Error::new(
                key.span(),
                format!("no argument of `#[locked]` is called `{key}`; there are {KEYS}"),
            )),
        }
    }

    /// A name without its key, as in `#[locked("report")]`.
    ///
    /// Only a literal: any other expression may as well be a key that was misremembered.
    fn take_bare(&mut self, input: ParseStream<'_>, first: bool) -> Result<()> {
        let value: Expr = input.parse()?;
        if literal(&value).is_some_and(|lit| matches!(lit, Lit::Str(_))) {
            if !first {
                let text = "a name without `name =` goes first";
                return Err(Error::new_spanned(value, text));
            }
            let key = Ident::new("name", proc_macro2::Span::call_site());
            self.name = Some(text(&key, value)?);
            return Ok(());
        }
        Err(Error::new_spanned(
            value,
            format!(
                "expected the lock's name as a string literal, or `key = value`; the keys are {KEYS}"
            ),
        ))
    }
}

fn fill<T>(slot: &mut Option<T>, key: &Ident, value: T) -> Result<()> {
    if slot.replace(value).is_some() {
        return Err(Error::new(key.span(), format!("`{key}` is given twice")));
    }
    Ok(())
}

/// The literal that an expression is; what a macro by example passes on may be wrapped.
pub(crate) fn literal(value: &Expr) -> Option<&Lit> {
    match value {
        Expr::Lit(ExprLit { lit, .. }) => Some(lit),
        Expr::Group(group) => literal(&group.expr),
        Expr::Paren(paren) => literal(&paren.expr),
        _ => None,
    }
}

/// Something that is `AsRef<str>`: a name or a holder.
fn text(key: &Ident, value: Expr) -> Result<Expr> {
    let problem = match literal(&value) {
        None => None,
        Some(Lit::Str(literal)) => unfit(literal).map(|problem| {
            format!("`{key}` is {problem}, must be 1 to {MAX_NAME_CHARS} characters without NUL")
        }),
        Some(_) => Some(format!(
            "`{key}` must be a string literal, or an expression that is `AsRef<str>`"
        )),
    };
    match problem {
        Some(problem) => Err(Error::new_spanned(value, problem)),
        None => Ok(value),
    }
}

fn unfit(literal: &LitStr) -> Option<String> {
    let text = literal.value();
    match text.chars().count() {
        0 => Some("empty".into()),
        n if n > MAX_NAME_CHARS => Some(format!("{n} characters long")),
        _ if text.contains('\0') => Some("a text with a NUL in it".into()),
        _ => None,
    }
}

fn length(bounds: &Bounds, value: Expr) -> Result<Length> {
    let Bounds { key, allowed, .. } = bounds;
    let refuse = |problem: String| Err(Error::new_spanned(&value, problem));
    let literal = match literal(&value) {
        None => return Ok(Length::Computed(value)),
        Some(Lit::Str(literal)) => literal.value(),
        Some(other) => {
            let other = other.to_token_stream();
            return refuse(format!(
                "`{key}` is `{other}`, must be a string literal such as \"30s\", or an expression \
                 of type {}",
                bounds.types
            ));
        }
    };
    if literal.trim() == "inf" && bounds.endless {
        return Ok(Length::Infinite);
    }
    match duration::parse(&literal) {
        Some(length) if (bounds.least..=bounds.most).contains(&length) => Ok(Length::Fixed(length)),
        Some(_) => refuse(format!("`{key}` is out of range, must be {allowed}")),
        None => refuse(format!(
            "`{key}` is not a duration, must be {allowed}; a duration is {}",
            duration::FORM
        )),
    }
}

fn flag(key: &Ident, value: Expr) -> Result<Expr> {
    if literal(&value).is_some_and(|lit| !matches!(lit, Lit::Bool(_))) {
        let text = format!("`{key}` must be `true`, `false`, or an expression of type `bool`");
        return Err(Error::new_spanned(value, text));
    }
    Ok(value)
}

fn locks(value: Expr) -> Result<Expr> {
    if literal(&value).is_some() {
        let text = "`via` must be an expression that is `AsRef<Locks>`: a `Locks`, a `&Locks`, or \
                    something of yours that has one";
        return Err(Error::new_spanned(value, text));
    }
    Ok(value)
}

fn path(input: ParseStream<'_>) -> Result<Path> {
    input
        .call(Path::parse_mod_style)
        .map_err(|error| Error::new(error.span(), "`crate` must be a path: `crate = some::path`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(args: &str) -> String {
        match syn::parse_str::<Args>(args) {
            Ok(_) => panic!("{args} was taken"),
            Err(error) => error.to_string(),
        }
    }

    fn ttl(args: &str) -> Option<Duration> {
        match syn::parse_str::<Args>(args).unwrap().ttl {
            Some(Length::Fixed(length)) => Some(length),
            _ => None,
        }
    }

    #[test]
    fn everything_is_optional() {
        let args = syn::parse_str::<Args>("").unwrap();
        assert!(args.name.is_none() && args.ttl.is_none() && args.core.is_none());
    }

    #[test]
    fn a_name_stands_alone_or_with_its_key() {
        for args in [
            "\"a\"",
            "\"a\",",
            "name = \"a\"",
            "ttl = \"1s\", name = f(id)?",
        ] {
            assert!(
                syn::parse_str::<Args>(args).unwrap().name.is_some(),
                "{args}"
            );
        }
        assert_eq!(refused("\"a\", name = \"b\""), "`name` is given twice");
        assert!(refused("ttl = \"1s\", \"a\"").contains("goes first"));
    }

    #[test]
    fn the_ends_of_the_ttl_range_are_within_it() {
        assert_eq!(ttl("ttl = \"100ms\""), Some(Duration::from_millis(100)));
        assert!(ttl("ttl = \"3652.5d\"").is_some());
        for beyond in ["99ms", "0", "3652.6d"] {
            let said = refused(&format!("ttl = \"{beyond}\""));
            assert!(said.contains("100ms"), "{said}");
        }
    }

    #[test]
    fn only_a_ttl_is_without_end() {
        let args = syn::parse_str::<Args>("ttl = \"inf\"").unwrap();
        assert!(matches!(args.ttl, Some(Length::Infinite)));
        assert!(refused("wait = \"inf\"").contains("left out"));
        assert!(refused("margin = \"inf\"").contains("half of the ttl"));
    }

    #[test]
    fn a_wait_of_zero_is_a_try() {
        let args = syn::parse_str::<Args>("wait = \"0\"").unwrap();
        assert!(matches!(args.wait, Some(Length::Fixed(Duration::ZERO))));
    }

    #[test]
    fn a_key_that_is_not_known_is_answered_with_those_that_are() {
        assert!(refused("timeout = \"5s\"").contains(KEYS));
        assert!(refused("no_wait").contains(KEYS));
    }

    #[test]
    fn the_core_may_have_another_name() {
        let args = syn::parse_str::<Args>("crate = crate::vendored::locks").unwrap();
        assert_eq!(args.core.unwrap().segments.len(), 3);
    }
}
