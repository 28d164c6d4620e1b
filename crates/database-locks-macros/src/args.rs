//! The arguments of `#[locked(…)]`.

use std::ops::RangeInclusive;
use std::time::Duration;

use protocol::{LockName, MAX_CHARS, OncePer, Ttl, parse_duration};
use quote::ToTokens;
use syn::ext::IdentExt;
use syn::parse::{Parse, ParseStream};
use syn::{Error, Expr, ExprLit, Ident, Lit, LitStr, Path, Result, Token};

/// All keys, for messages.
const KEYS: &str = "`name`, `ttl`, `wait`, `poll`, `renew_every`, `auto_renew`, `margin`, `holder`, \
                    `shared`, `preempt`, `at_least`, `once_per`, `metadata`, `via` and `crate`";
/// Names of arguments in other libraries, and the key here.
const ALIASES: [(&str, &str); 14] = [
    ("database", "via"),
    ("db", "via"),
    ("every", "once_per"),
    ("key", "name"),
    ("lease", "ttl"),
    ("locks", "via"),
    ("meta", "metadata"),
    ("min_hold", "at_least"),
    ("owner", "holder"),
    ("period", "once_per"),
    ("reader", "shared"),
    ("retry", "poll"),
    ("take_over", "preempt"),
    ("timeout", "wait"),
];

/// The arguments that were given.
#[derive(Default)]
pub(crate) struct Args {
    pub(crate) name: Option<Expr>,
    pub(crate) ttl: Option<Length>,
    pub(crate) wait: Option<Length>,
    pub(crate) poll: Option<Length>,
    pub(crate) renew_every: Option<Length>,
    pub(crate) auto_renew: Option<Expr>,
    pub(crate) margin: Option<Length>,
    pub(crate) holder: Option<Expr>,
    pub(crate) shared: Option<Expr>,
    pub(crate) preempt: Option<Expr>,
    pub(crate) at_least: Option<Length>,
    pub(crate) once_per: Option<Length>,
    pub(crate) metadata: Option<Metadata>,
    pub(crate) via: Option<Expr>,
    /// The path of `database_locks`, if it was renamed.
    pub(crate) core: Option<Path>,
}

/// The metadata of the holder.
pub(crate) enum Metadata {
    /// An array literal of pairs. Each value may have another type.
    Pairs(Vec<(Expr, Expr)>),
    /// An expression that iterates over pairs.
    Computed(Expr),
}

/// A duration or ttl.
pub(crate) enum Length {
    /// A literal.
    Fixed(Duration),
    /// The literal `"inf"`.
    Infinite,
    /// An expression, evaluated at each call.
    Computed(Expr),
}

/// The allowed values of a duration literal, also for messages. A bound that depends on two settings
/// is checked when the lock is made.
fn bounds(key: &str) -> (RangeInclusive<Duration>, &'static str) {
    let ms = Duration::from_millis;
    match key {
        "ttl" => (
            Ttl::MIN..=Ttl::MAX,
            "\"100ms\" to ten years (\"3652.5d\"), or \"inf\"",
        ),
        "wait" => (
            Duration::ZERO..=Duration::MAX,
            "\"0\" (try once) or more; left out, it waits as long as it takes",
        ),
        "poll" => (ms(1)..=Duration::MAX, "\"1ms\" or more"),
        "renew_every" => (
            ms(10)..=Duration::MAX,
            "\"10ms\" to half of what is trusted of the ttl",
        ),
        "margin" => (Duration::ZERO..=Duration::MAX, "less than half of the ttl"),
        "at_least" => (
            Duration::ZERO..=Ttl::MAX,
            "\"0\" to ten years (\"3652.5d\")",
        ),
        "once_per" => (
            OncePer::MIN..=OncePer::MAX,
            "\"100ms\" to ten years (\"3652.5d\")",
        ),
        other => unreachable!("`{other}` is no duration"),
    }
}

impl Parse for Args {
    fn parse(input: ParseStream<'_>) -> Result<Self> {
        let mut args = Self::default();
        let mut first = true;
        while !input.is_empty() {
            if input.peek(Ident::peek_any) && input.peek2(Token![=]) {
                args.parse_named(input)?;
            } else {
                args.parse_unnamed(input, first)?;
            }
            first = false;
            if !input.is_empty() {
                input.parse::<Token![,]>()?;
            }
        }
        args.check_combinations()?;
        Ok(args)
    }
}

impl Args {
    fn parse_named(&mut self, input: ParseStream<'_>) -> Result<()> {
        let key = input.call(Ident::parse_any)?;
        let equals = input.parse::<Token![=]>()?;
        if input.is_empty() || input.peek(Token![,]) {
            let text = format!("`{key}` is given no value");
            return Err(Error::new_spanned(equals, text));
        }
        match key.to_string().as_str() {
            "name" => set(&mut self.name, &key, text(&key, input.parse()?)?),
            "ttl" => set(&mut self.ttl, &key, length(&key, input.parse()?)?),
            "wait" => set(&mut self.wait, &key, length(&key, input.parse()?)?),
            "poll" => set(&mut self.poll, &key, length(&key, input.parse()?)?),
            "renew_every" => set(&mut self.renew_every, &key, length(&key, input.parse()?)?),
            "auto_renew" => set(&mut self.auto_renew, &key, flag(&key, input.parse()?)?),
            "margin" => set(&mut self.margin, &key, length(&key, input.parse()?)?),
            "holder" => set(&mut self.holder, &key, text(&key, input.parse()?)?),
            "shared" => set(&mut self.shared, &key, flag(&key, input.parse()?)?),
            "preempt" => set(&mut self.preempt, &key, flag(&key, input.parse()?)?),
            "at_least" => set(&mut self.at_least, &key, length(&key, input.parse()?)?),
            "once_per" => set(&mut self.once_per, &key, length(&key, input.parse()?)?),
            "metadata" => set(&mut self.metadata, &key, metadata(input.parse()?)?),
            "via" => set(&mut self.via, &key, locks(input.parse()?)?),
            "crate" => set(&mut self.core, &key, path(input)?),
            other => Err(Error::new(key.span(), unknown(other))),
        }
    }

    /// A name without its key, as in `#[locked("report")]` or `#[locked(names::REPORT)]`.
    ///
    /// A single identifier that is not written like a constant is refused: it may be a misspelled
    /// key.
    fn parse_unnamed(&mut self, input: ParseStream<'_>, first: bool) -> Result<()> {
        let value: Expr = input.parse()?;
        if let Some(word) = lone_identifier(&value) {
            let text = format!(
                "{}; a variable with the lock's name is given as `name = {word}`",
                unknown(&word)
            );
            return Err(Error::new_spanned(value, text));
        }
        if !can_be_name(&value) {
            return Err(Error::new_spanned(
                value,
                format!(
                    "expected the lock's name as a string literal, a constant or a macro such as \
                     `concat!`, or `key = value`, as in `name = …`; the keys are {KEYS}"
                ),
            ));
        }
        if !first {
            let text = "a name without `name =` goes first";
            return Err(Error::new_spanned(value, text));
        }
        let key = Ident::new("name", proc_macro2::Span::call_site());
        self.name = Some(text(&key, value)?);
        Ok(())
    }

    /// The rules between two arguments that can be checked at compile time.
    fn check_combinations(&self) -> Result<()> {
        if let Some(on) = switched_on(&self.preempt)
            && self.holder.is_none()
        {
            let text = "`preempt` is `true`, must be given with a `holder`, the same at each start: \
                        the default one is different each time";
            return Err(Error::new_spanned(on, text));
        }
        if let Some(on) = switched_on(&self.shared) {
            let exclusive = [
                ("preempt", switched_on(&self.preempt).is_some()),
                ("at_least", self.at_least.is_some()),
                ("once_per", self.once_per.is_some()),
            ];
            if let Some((key, _)) = exclusive.into_iter().find(|(_, given)| *given) {
                let text = format!(
                    "`shared` is `true`, and `{key}` is for an exclusive lock: leave it out"
                );
                return Err(Error::new_spanned(on, text));
            }
        }
        Ok(())
    }
}

/// A flag that is the literal `true`.
fn switched_on(flag: &Option<Expr>) -> Option<&Expr> {
    let is_true = |on: &&Expr| matches!(literal(on), Some(Lit::Bool(on)) if on.value);
    flag.as_ref().filter(is_true)
}

fn unknown(key: &str) -> String {
    let meant = ALIASES.iter().find(|(alias, _)| *alias == key);
    let meant = meant.map_or(String::new(), |(_, key)| format!("did you mean `{key}`? "));
    format!("no argument of `#[locked]` is called `{key}`; {meant}there are {KEYS}")
}

/// The identifier that this path is, unless it is written like a constant.
fn lone_identifier(value: &Expr) -> Option<String> {
    let Expr::Path(path) = value else { return None };
    let word = path.path.get_ident()?.unraw().to_string();
    (word.to_uppercase() != word).then_some(word)
}

/// Whether an expression can be a name without its key: a string, a constant or a macro.
fn can_be_name(value: &Expr) -> bool {
    match value {
        Expr::Path(_) | Expr::Macro(_) => true,
        Expr::Group(group) => can_be_name(&group.expr),
        _ => matches!(literal(value), Some(Lit::Str(_))),
    }
}

fn set<T>(slot: &mut Option<T>, key: &Ident, value: T) -> Result<()> {
    if slot.replace(value).is_some() {
        return Err(Error::new(key.span(), format!("`{key}` is given twice")));
    }
    Ok(())
}

/// The literal that an expression is. A `macro_rules!` macro may pass it in an invisible group.
pub(crate) fn literal(value: &Expr) -> Option<&Lit> {
    match value {
        Expr::Lit(ExprLit { lit, .. }) => Some(lit),
        Expr::Group(group) => literal(&group.expr),
        Expr::Paren(paren) => literal(&paren.expr),
        _ => None,
    }
}

/// Check a name or a holder: an expression that is `AsRef<str>`.
fn text(key: &Ident, value: Expr) -> Result<Expr> {
    let problem = match literal(&value) {
        None => None,
        Some(Lit::Str(literal)) => invalid_text(literal).map(|problem| {
            format!("`{key}` is {problem}, must be 1 to {MAX_CHARS} characters without NUL")
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

fn invalid_text(literal: &LitStr) -> Option<String> {
    LockName::new(literal.value())
        .err()
        .map(|invalid| invalid.got)
}

fn length(key: &Ident, value: Expr) -> Result<Length> {
    let (range, allowed) = bounds(&key.to_string());
    let can_be_infinite = key == "ttl";
    let refuse = |problem: String| Err(Error::new_spanned(&value, problem));
    let literal = match literal(&value) {
        None => return Ok(Length::Computed(value)),
        Some(Lit::Str(literal)) => literal.value(),
        Some(other) => {
            let other = other.to_token_stream();
            let types = match can_be_infinite {
                true => "`Duration` or `Ttl`",
                false => "`Duration`",
            };
            return refuse(format!(
                "`{key}` is `{other}`, must be a string literal such as \"30s\", or an expression \
                 of type {types}"
            ));
        }
    };
    if literal.trim() == "inf" && can_be_infinite {
        return Ok(Length::Infinite);
    }
    match parse_duration(&literal) {
        Ok(length) if range.contains(&length) => Ok(Length::Fixed(length)),
        Ok(_) => refuse(format!("`{key}` is out of range, must be {allowed}")),
        Err(invalid) => refuse(format!(
            "`{key}` is not a duration, must be {allowed}; a duration is {}",
            invalid.allowed
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

/// An array literal of pairs, `[("key", value), …]`, or any expression that iterates over pairs.
fn metadata(value: Expr) -> Result<Metadata> {
    let form = "must be pairs of a key and a value, as in `[(\"order\", id), (\"by\", user)]`, or an \
                expression that iterates over such pairs";
    let refuse = |at: &Expr| Err(Error::new_spanned(at, format!("`metadata` {form}")));
    if literal(&value).is_some() {
        return refuse(&value);
    }
    let Expr::Array(array) = value else {
        return Ok(Metadata::Computed(value));
    };
    let mut pairs = Vec::new();
    for pair in array.elems {
        let Expr::Tuple(tuple) = &pair else {
            return refuse(&pair);
        };
        let elems: Vec<_> = tuple.elems.iter().collect();
        let [key, value] = elems[..] else {
            return refuse(&pair);
        };
        if literal(key).is_some_and(|lit| !matches!(lit, Lit::Str(_))) {
            return refuse(key);
        }
        pairs.push((key.clone(), value.clone()));
    }
    Ok(Metadata::Pairs(pairs))
}

fn locks(value: Expr) -> Result<Expr> {
    if literal(&value).is_some() {
        let text = "`via` must be an expression that is `AsRef<Locks>`: a `Locks`, a `&Locks`, or \
                    a type of yours that contains one";
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
mod tests;
