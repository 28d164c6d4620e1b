//! The function under the attribute, and the checks of its signature.

use proc_macro2::{TokenStream, TokenTree};
use quote::ToTokens;
use syn::ext::IdentExt;
use syn::parse::{Parse, ParseStream};
use syn::{Attribute, Error, Expr, FnArg, Lit, Pat, Result, Signature, Token, Visibility};

use crate::args::{Args, literal};
use crate::future::{self, Shape};

/// A function. Its body is not parsed.
pub(crate) struct Function {
    pub(crate) attrs: Vec<Attribute>,
    pub(crate) vis: Visibility,
    pub(crate) sig: Signature,
    pub(crate) body: TokenStream,
}

impl Parse for Function {
    fn parse(input: ParseStream<'_>) -> Result<Self> {
        let attrs = input.call(Attribute::parse_outer)?;
        let vis = input.parse()?;
        let start = input.span();
        // The compiler has parsed the item already, so it is an item of another kind.
        let sig: Signature = input.parse().map_err(|_| {
            let text = "`#[locked]` goes on a function or a method: `fn` or `async fn`";
            Error::new(start, text)
        })?;
        if input.peek(Token![;]) {
            return Err(Error::new_spanned(
                sig,
                "`#[locked]` needs a body to run: put it where the function is implemented",
            ));
        }
        let body = input.parse()?;
        Ok(Self {
            attrs,
            vis,
            sig,
            body,
        })
    }
}

impl Function {
    /// Refuse a function that cannot be locked, or whose lock has no usable name.
    pub(crate) fn check(&self, args: &Args) -> Result<()> {
        let Signature {
            inputs,
            output,
            generics,
            ..
        } = &self.sig;
        if let Some(constness) = &self.sig.constness {
            let text = "a `const fn` cannot be locked: it may run while compiling";
            return Err(Error::new_spanned(constness, text));
        }
        if let Some(abi) = &self.sig.abi {
            let text = "an `extern fn` cannot be locked: lock a function of Rust that it calls";
            return Err(Error::new_spanned(abi, text));
        }
        let is_future = |name: &str| name.ends_with("Future");
        if matches!(future::shape(&self.sig), Shape::Blocking) && mentions(output, is_future) {
            let text = "the lock would be free again before this future runs: make it an `async fn`, or \
                        return `impl Future<Output = …>` or `Pin<Box<dyn Future<Output = …> + …>>`";
            return Err(Error::new_spanned(output, text));
        }
        let is_self = |name: &str| name == "Self";
        let of_a_type = self.sig.receiver().is_some()
            || mentions(inputs, is_self)
            || mentions(output, is_self)
            || mentions(&generics.where_clause, is_self);
        match &args.name {
            None if of_a_type => Err(Error::new_spanned(
                &self.sig,
                "a method must give its lock a name, as in `#[locked(\"name\")]`: here its type \
                 is not known, and methods of two types would share a lock",
            )),
            Some(name) => self.check_name(name),
            None => Ok(()),
        }
    }

    /// Refuse a name that looks like a format string. It would be one lock for all values of the
    /// argument, and all calls would wait for each other.
    fn check_name(&self, name: &Expr) -> Result<()> {
        let Some(Lit::Str(literal)) = literal(name) else {
            return Ok(());
        };
        let text = literal.value();
        for argument in self.sig.inputs.iter().filter_map(name_of) {
            let written = format!("{{{argument}}}");
            if text.contains(&written) {
                return Err(Error::new_spanned(
                    name,
                    format!("a name is not formatted: write `name = format!({text:?})`"),
                ));
            }
        }
        Ok(())
    }
}

/// The name of an argument; `None` for another pattern.
fn name_of(argument: &FnArg) -> Option<String> {
    match argument {
        FnArg::Typed(typed) => match &*typed.pat {
            Pat::Ident(pat) => Some(pat.ident.unraw().to_string()),
            _ => None,
        },
        FnArg::Receiver(_) => None,
    }
}

/// Whether these tokens contain an identifier that is `wanted`.
fn mentions(tokens: &impl ToTokens, wanted: impl Fn(&str) -> bool + Copy) -> bool {
    tokens
        .to_token_stream()
        .into_iter()
        .any(|token| match token {
            TokenTree::Ident(ident) => wanted(&ident.to_string()),
            TokenTree::Group(group) => mentions(&group.stream(), wanted),
            TokenTree::Punct(_) | TokenTree::Literal(_) => false,
        })
}
