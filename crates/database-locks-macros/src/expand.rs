//! Expansion: from the function as it was written to one that acquires the lock first.
//!
//! ```text
//! async fn report(id: u64) -> Result<(), E> {
//!     let locks = match Locks::get_default().await { Ok(locks) => locks, Err(error) => return /* on_error */ };
//!     let lock = locks.lock(/* name */).ttl(/* … */);
//!     match lock.run(async move { /* the body */ }).await {
//!         Ok(output) => output,
//!         Err(error) => return Failure::<Result<(), E>>::answer(error),
//!     }
//! }
//! ```
//!
//! The body becomes an async block or a closure. So its own `return` and `?` end the body, and the
//! lock is still released. Names that the expansion introduces are hygienic and hide no argument.
//!
//! A `fn` that returns a boxed future or an `impl Future` is rewritten to return a future of the
//! same type. That future acquires the lock, calls the body and awaits the future that the body
//! returns. `#[async_trait]` turns an `async fn` into such a `fn`.

use proc_macro2::{Delimiter, Ident, Span, TokenStream, TokenTree};
use quote::{ToTokens, quote, quote_spanned};
use syn::ext::IdentExt;
use syn::spanned::Spanned;
use syn::visit_mut::{self, VisitMut};
use syn::{Expr, Path, ReturnType, Signature, Type, parse_quote};

use crate::args::{Args, Length, Metadata};
use crate::function::Function;
use crate::future::{self, Shape};

/// Expand the attribute. After an error the function is kept unchanged beside the error, or each
/// caller of it would fail to compile too.
pub(crate) fn locked(args: TokenStream, function: TokenStream) -> TokenStream {
    let expanded = syn::parse2(function.clone()).and_then(|parsed: Function| {
        let args = syn::parse2(args)?;
        parsed.check(&args)?;
        Ok(expand(&args, &parsed))
    });
    expanded.unwrap_or_else(|error| {
        let error = error.into_compile_error();
        quote!(#error #function)
    })
}

/// The input of all parts of the expansion.
struct Expansion<'a> {
    args: &'a Args,
    sig: &'a Signature,
    core: Path,
    shape: Shape,
    /// The output type of the body, with `_` in place of each `impl Trait`.
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
    let on_output = expansion.on_output();
    let on_error = expansion.on_error();
    let run = quote_spanned! {Span::mixed_site()=>
        let lock = #lock;
        match lock.run(#work) #wait {
            ::core::result::Result::Ok(output) => #on_output,
            ::core::result::Result::Err(error) => #on_error,
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
    /// Whether the lock is acquired in a future.
    fn is_async(&self) -> bool {
        !matches!(self.shape, Shape::Blocking)
    }

    /// The lock with its settings. It borrows none of the arguments.
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
            // By reference, so that the body can still use the argument.
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
        let (core, on_error) = (&self.core, self.on_error());
        let get = match self.is_async() {
            true => quote!(#core::Locks::get_default().await),
            false => quote!(#core::blocking::Locks::get_default()),
        };
        quote_spanned! {Span::mixed_site()=>
            match #get {
                ::core::result::Result::Ok(locks) => locks,
                ::core::result::Result::Err(error) => #on_error,
            }
        }
    }

    /// The calls that set up the lock, in an order in which none overrides another.
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
        let flag = |method: &str, on: &Option<Expr>| {
            let on = on.as_ref()?;
            let method = Ident::new(method, on.span());
            Some(quote_spanned!(on.span()=> .#method(#on)))
        };
        let calls = [
            length("ttl", &args.ttl),
            length("wait", &args.wait),
            length("poll", &args.poll),
            length("renew_every", &args.renew_every),
            // After `renew_every`, which would switch renewals on again.
            flag("auto_renew", &args.auto_renew),
            length("margin", &args.margin),
            args.holder.as_ref().map(|holder| {
                quote_spanned! {holder.span()=>
                    .holder(<_ as ::core::convert::AsRef<::core::primitive::str>>::as_ref(&#holder))
                }
            }),
            flag("shared_if", &args.shared),
            flag("preempt", &args.preempt),
            length("at_least", &args.at_least),
            length("once_per", &args.once_per),
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

    /// The body as an argument of `Lock::run`.
    fn work(&self, body: &TokenStream) -> TokenStream {
        let (answer, core, output) = (&self.answer, &self.core, &self.sig.output);
        let body = match self.shape {
            Shape::Blocking => return quote!(move || -> #answer #body),
            Shape::Async => unwrapped(body),
            Shape::Boxed(_) => quote!(#core::__locked::call(move || #output #body).await),
            // A closure cannot declare the return type `impl Future`.
            Shape::Opaque(_) => quote!(#core::__locked::call(move || #body).await),
        };
        // An async block cannot declare its output type, and `?` and coercions depend on it. A
        // `return` that never runs fixes the type.
        let type_hint = quote_spanned! {hygienic(answer.span())=>
            #[allow(unreachable_code, clippy::all, clippy::pedantic)]
            if false {
                let answer: #answer = loop {};
                return answer;
            }
        };
        quote!(async move { #type_hint #body })
    }

    /// The expression for the `output` of the body.
    fn on_output(&self) -> TokenStream {
        let core = &self.core;
        if self.never {
            return quote_spanned!(Span::mixed_site()=> match output {});
        }
        if self.is_async() {
            return quote_spanned!(Span::mixed_site()=> output);
        }
        // The signature does not show each future: its type may be an alias.
        quote_spanned! {hygienic(self.answer.span())=> {
            #[allow(unused_imports)]
            use #core::__locked::Finished as _;
            #core::__locked::require_finished(#core::__locked::Returned(&output).work());
            output
        }}
    }

    /// The expression for an `error` of the lock. It returns from the function, or panics.
    fn on_error(&self) -> TokenStream {
        let (core, answer) = (&self.core, &self.answer);
        // Neither `!` nor `impl Trait` can be named here, and neither is a `Result`.
        if self.never || matches!(answer, Type::Infer(_)) {
            return quote_spanned!(Span::mixed_site()=> #core::__locked::panic(error));
        }
        // With the span of the return type, where the compiler reports a missing `From`.
        quote_spanned! {hygienic(answer.span())=> {
            #[allow(unused_imports)]
            use #core::__locked::Panics as _;
            return #core::__locked::Failure::<#answer>::answer(error)
        }}
    }
}

/// The body without its braces, which a lint would report as superfluous in an async block.
fn unwrapped(body: &TokenStream) -> TokenStream {
    let mut tokens = body.clone().into_iter();
    match (tokens.next(), tokens.next()) {
        (Some(TokenTree::Group(block)), None) => match block.delimiter() {
            Delimiter::Brace => block.stream(),
            // A `macro_rules!` macro may pass it in an invisible group.
            _ => unwrapped(&block.stream()),
        },
        _ => body.clone(),
    }
}

/// A span of the user's code, with hygiene for the names that the expansion introduces.
fn hygienic(place: Span) -> Span {
    place.resolved_at(Span::mixed_site())
}

/// The return type with `_` in place of each `impl Trait`, which is not allowed in a body.
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
        // A type argument cannot be `!`. No value of `Infallible` exists either.
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
