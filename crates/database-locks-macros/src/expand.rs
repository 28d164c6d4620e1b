//! The function as it was written, to the function that takes the lock first.
//!
//! ```text
//! async fn report(id: u64) -> Result<(), E> {
//!     let locks = match Locks::get_default().await { Ok(locks) => locks, Err(error) => return /* fail */ };
//!     let lock = locks.lock(/* name */).ttl(/* … */);
//!     match lock.run(async move { /* the body */ }).await {
//!         Ok(output) => output,
//!         Err(error) => return Failure::<Result<(), E>>::answer(error),
//!     }
//! }
//! ```
//!
//! The body becomes an async block or a closure, so that its own `return` and `?` end the body and
//! not the holding of the lock. Names of ours are hygienic: no argument is hidden by them.
//!
//! A `fn` that returns a boxed future, which is what `#[async_trait]` makes of an `async fn`, or an
//! `impl Future`, is rewritten to a future of the same type that takes the lock, calls the body and
//! awaits what it returns.

use proc_macro2::{Delimiter, Ident, Span, TokenStream, TokenTree};
use quote::{ToTokens, quote, quote_spanned};
use syn::ext::IdentExt;
use syn::parse::{Parse, ParseStream};
use syn::spanned::Spanned;
use syn::visit_mut::{self, VisitMut};
use syn::{
    Attribute, Error, Expr, FnArg, Lit, Pat, Path, Result, ReturnType, Signature, Token, Type,
    Visibility, parse_quote,
};

use crate::args::{Args, Length, Metadata, literal};
use crate::future::{self, Shape};

/// Expand, or say what is wrong beside the function as it was: without it, whoever calls it would
/// hear of errors that are none.
pub(crate) fn locked(args: TokenStream, function: TokenStream) -> TokenStream {
    let expanded = syn::parse2(function.clone()).and_then(|parsed: Function| {
        let args = syn::parse2(args)?;
        parsed.refuse_what_cannot_be_locked(&args)?;
        Ok(expand(&args, &parsed))
    });
    expanded.unwrap_or_else(|error| {
        let error = error.into_compile_error();
        quote!(#error #function)
    })
}

/// A function whose body is passed on unread.
struct Function {
    attrs: Vec<Attribute>,
    vis: Visibility,
    sig: Signature,
    body: TokenStream,
}

impl Parse for Function {
    fn parse(input: ParseStream<'_>) -> Result<Self> {
        let attrs = input.call(Attribute::parse_outer)?;
        let vis = input.parse()?;
        let start = input.span();
        // The compiler has parsed the item before: what is not a signature is another kind of item.
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
    fn refuse_what_cannot_be_locked(&self, args: &Args) -> Result<()> {
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
            Some(name) => self.refuse_a_format_string(name),
            None => Ok(()),
        }
    }

    /// One lock for all invoices is no error that shows: nothing runs twice, everything waits.
    fn refuse_a_format_string(&self, name: &Expr) -> Result<()> {
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

/// What an argument is called, if it is one plain name.
fn name_of(argument: &FnArg) -> Option<String> {
    match argument {
        FnArg::Typed(typed) => match &*typed.pat {
            Pat::Ident(pat) => Some(pat.ident.unraw().to_string()),
            _ => None,
        },
        FnArg::Receiver(_) => None,
    }
}

/// Whether a name that is looked for stands anywhere in these tokens.
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

/// What the parts of the expansion have in common.
struct Expansion<'a> {
    args: &'a Args,
    sig: &'a Signature,
    core: Path,
    shape: Shape,
    /// The type that the work ends with, as it may be written within a body.
    answer: Type,
    /// Whether the function returns `!`.
    never: bool,
}

fn expand(args: &Args, function: &Function) -> TokenStream {
    let Function {
        attrs,
        vis,
        sig,
        body,
    } = function;
    let core = args.core.clone();
    let shape = future::shape(sig);
    let output = match &shape {
        Shape::Boxed(output) | Shape::Opaque(output) => parse_quote!(-> #output),
        Shape::Blocking | Shape::Async => sig.output.clone(),
    };
    let expansion = Expansion {
        args,
        sig,
        core: core.unwrap_or_else(|| parse_quote!(::database_locks)),
        shape,
        answer: answer_of(&output),
        never: is_never(&output),
    };
    let lock = expansion.lock();
    let work = expansion.work(body);
    let wait = expansion.is_async().then(|| quote!(.await));
    let ours = Span::mixed_site();
    let done = expansion.done();
    let fail = expansion.fail();
    let run = quote_spanned! {ours=>
        let lock = #lock;
        match lock.run(#work) #wait {
            ::core::result::Result::Ok(output) => #done,
            ::core::result::Result::Err(error) => #fail,
        }
    };
    let run = match expansion.shape {
        Shape::Blocking | Shape::Async => run,
        Shape::Opaque(_) => quote!(async move { #run }),
        Shape::Boxed(_) => quote!(::std::boxed::Box::pin(async move { #run })),
    };
    quote!(#(#attrs)* #vis #sig { #run })
}

impl Expansion<'_> {
    /// Whether the lock is taken in a future.
    fn is_async(&self) -> bool {
        !matches!(self.shape, Shape::Blocking)
    }

    /// The lock with its settings, as a value that borrows nothing of the arguments.
    fn lock(&self) -> TokenStream {
        let core = &self.core;
        let locks = match &self.args.via {
            Some(via) => quote_spanned!(via.span()=> &#via),
            None => {
                let default = self.default_locks();
                quote!(&#default)
            }
        };
        let name = match &self.args.name {
            // `&`, since an argument that is named is not given away.
            Some(name) => quote_spanned!(name.span()=> &#name),
            None => {
                let function = self.sig.ident.unraw().to_string();
                quote!(::core::concat!(::core::module_path!(), "::", #function))
            }
        };
        let settings = self.settings();
        let mut lock = quote! {
            <_ as ::core::convert::AsRef<#core::Locks>>::as_ref(#locks).lock(#name) #settings
        };
        if let Some(Metadata::Computed(pairs)) = &self.args.metadata {
            lock = quote_spanned!(pairs.span()=> #core::__locked::with_metadata(#lock, #pairs));
        }
        match self.is_async() {
            true => lock,
            false => quote!(#core::blocking::Lock::from(#lock)),
        }
    }

    fn default_locks(&self) -> TokenStream {
        let (core, fail) = (&self.core, self.fail());
        let get = match self.is_async() {
            true => quote!(#core::Locks::get_default().await),
            false => quote!(#core::blocking::Locks::get_default()),
        };
        quote_spanned! {Span::mixed_site()=>
            match #get {
                ::core::result::Result::Ok(locks) => locks,
                ::core::result::Result::Err(error) => #fail,
            }
        }
    }

    /// The calls of the builder, in an order of which none undoes another.
    fn settings(&self) -> TokenStream {
        let (args, core) = (self.args, &self.core);
        let length = |method: &str, length: &Option<Length>| {
            let method = Ident::new(method, Span::call_site());
            let length = match length.as_ref()? {
                Length::Computed(length) => length.to_token_stream(),
                Length::Infinite => quote!(#core::Ttl::Infinite),
                Length::Fixed(length) => {
                    let (secs, nanos) = (length.as_secs(), length.subsec_nanos());
                    quote!(::core::time::Duration::new(#secs, #nanos))
                }
            };
            Some(quote_spanned!(length.span()=> .#method(#length)))
        };
        let calls = [
            length("ttl", &args.ttl),
            length("wait", &args.wait),
            length("poll", &args.poll),
            length("renew_every", &args.renew_every),
            // Switching off is forgotten where a period is set after it.
            args.auto_renew
                .as_ref()
                .map(|on| quote_spanned!(on.span()=> .auto_renew(#on))),
            length("margin", &args.margin),
            args.holder.as_ref().map(|holder| {
                quote_spanned! {holder.span()=>
                    .holder(<_ as ::core::convert::AsRef<::core::primitive::str>>::as_ref(&#holder))
                }
            }),
            args.preempt
                .as_ref()
                .map(|on| quote_spanned!(on.span()=> .preempt(#on))),
        ];
        let mut calls: TokenStream = calls.into_iter().flatten().collect();
        if let Some(Metadata::Pairs(pairs)) = &args.metadata {
            for (key, value) in pairs {
                calls.extend(quote_spanned! {value.span()=>
                    .metadata(#core::__locked::metadata_key(&#key), #core::__locked::metadata_value(&#value))
                });
            }
        }
        calls
    }

    /// The body as something that the lock can run.
    fn work(&self, body: &TokenStream) -> TokenStream {
        let (answer, core, output) = (&self.answer, &self.core, &self.sig.output);
        let body = match self.shape {
            Shape::Blocking => return quote!(move || -> #answer #body),
            Shape::Async => unwrapped(body),
            Shape::Boxed(_) => quote!(#core::__locked::call(move || #output #body).await),
            // `impl Future` is no type that a closure could be told.
            Shape::Opaque(_) => quote!(#core::__locked::call(move || #body).await),
        };
        // An async block cannot be told its type, and `?` and coercions want to know it: a return
        // that never runs tells.
        let tell = quote_spanned! {inside(answer.span())=>
            #[allow(unreachable_code, clippy::all, clippy::pedantic)]
            if false {
                let answer: #answer = loop {};
                return answer;
            }
        };
        quote!(async move { #tell #body })
    }

    /// What becomes of `output`.
    fn done(&self) -> TokenStream {
        let core = &self.core;
        if self.never {
            return quote_spanned!(Span::mixed_site()=> match output {});
        }
        if self.is_async() {
            return quote_spanned!(Span::mixed_site()=> output);
        }
        // The signature does not show every future: there are aliases, and types of all names.
        quote_spanned! {inside(self.answer.span())=> {
            #[allow(unused_imports)]
            use #core::__locked::Finished as _;
            #core::__locked::require_finished(#core::__locked::Returned(&output).work());
            output
        }}
    }

    /// What becomes of `error`, at the end of which the function has returned.
    fn fail(&self) -> TokenStream {
        let (core, answer) = (&self.core, &self.answer);
        // Neither `!` nor `impl Trait` can be named here, and neither is a `Result`.
        if self.never || matches!(answer, Type::Infer(_)) {
            return quote_spanned!(Span::mixed_site()=> #core::__locked::panic(error));
        }
        // The place is that of the return type: there the compiler says which `From` is missing.
        quote_spanned! {inside(answer.span())=> {
            #[allow(unused_imports)]
            use #core::__locked::Panics as _;
            return #core::__locked::Failure::<#answer>::answer(error)
        }}
    }
}

/// The body without its braces, of which a lint says that they are too many where others are
/// around.
fn unwrapped(body: &TokenStream) -> TokenStream {
    let mut tokens = body.clone().into_iter();
    match (tokens.next(), tokens.next()) {
        (Some(TokenTree::Group(block)), None) => match block.delimiter() {
            Delimiter::Brace => block.stream(),
            // What a macro by example passes on may be wrapped.
            _ => unwrapped(&block.stream()),
        },
        _ => body.clone(),
    }
}

/// A place in the user's code, for names and lints of ours.
fn inside(place: Span) -> Span {
    place.resolved_at(Span::mixed_site())
}

/// The return type as it may be written within a body, where `impl Trait` may not.
fn answer_of(output: &ReturnType) -> Type {
    struct Erase;
    impl VisitMut for Erase {
        fn visit_type_mut(&mut self, ty: &mut Type) {
            match ty {
                Type::ImplTrait(_) => *ty = parse_quote!(_),
                _ => visit_mut::visit_type_mut(self, ty),
            }
        }
    }
    let mut answer = match output {
        ReturnType::Default => parse_quote!(()),
        // A type argument cannot be `!`; what cannot be can become this as well.
        _ if is_never(output) => parse_quote!(::core::convert::Infallible),
        ReturnType::Type(_, ty) => (**ty).clone(),
    };
    Erase.visit_type_mut(&mut answer);
    answer
}

fn is_never(output: &ReturnType) -> bool {
    matches!(output, ReturnType::Type(_, ty) if matches!(**ty, Type::Never(_)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use syn::ItemFn;

    fn expanded(args: TokenStream, function: TokenStream) -> ItemFn {
        let tokens = locked(args, function);
        syn::parse2(tokens.clone()).unwrap_or_else(|error| panic!("{error}: {tokens}"))
    }

    #[test]
    fn all_but_the_body_stays_as_it_was() {
        let function = quote! {
            /// Documented.
            #[inline]
            pub(crate) async unsafe fn report<'a, T: Clone>(mut a: &'a T, _: u8) -> impl Sized + 'a
            where
                T: Send,
            {
                a
            }
        };
        let head = |ItemFn {
                        attrs, vis, sig, ..
                    }: ItemFn| quote!(#(#attrs)* #vis #sig).to_string();
        let before = head(syn::parse2(function.clone()).unwrap());
        assert_eq!(before, head(expanded(quote!("report"), function)));
    }

    #[test]
    fn what_is_refused_stays_beside_its_error() {
        let tokens = locked(
            quote!(tll = "5s"),
            quote!(
                fn report() {}
            ),
        )
        .to_string();
        assert!(tokens.contains("compile_error"), "{tokens}");
        assert!(tokens.ends_with("fn report () { }"), "{tokens}");
    }

    #[test]
    fn a_default_name_is_without_the_marks_of_a_raw_one() {
        let body = expanded(
            quote!(),
            quote!(
                fn r#type() {}
            ),
        )
        .block;
        let body = body.to_token_stream().to_string();
        assert!(body.contains("\"type\""), "{body}");
    }

    #[test]
    fn what_cannot_be_written_in_a_body_is_left_to_be_inferred() {
        let answer = |output: ReturnType| answer_of(&output).to_token_stream().to_string();
        assert_eq!(
            answer(parse_quote!(-> Result<Vec<impl Sized>, &'a str>)),
            "Result < Vec < _ > , & 'a str >"
        );
        assert_eq!(answer(parse_quote!(-> impl Iterator<Item = u8>)), "_");
        assert_eq!(answer(parse_quote!()), "()");
        assert!(answer(parse_quote!(-> !)).contains("Infallible"));
    }

    #[test]
    fn switching_renewals_off_is_the_last_word_on_them() {
        let args = quote!(auto_renew = false, renew_every = "1s");
        let body = expanded(
            args,
            quote!(
                fn report() {}
            ),
        )
        .block;
        let body = body.to_token_stream().to_string();
        let (period, off) = (body.find("renew_every"), body.find("auto_renew"));
        assert!(period.is_some() && period < off, "{body}");
    }
}
