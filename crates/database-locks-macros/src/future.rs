//! Detects functions that return a future, by their signature.

use syn::{
    GenericArgument, Path, PathArguments, ReturnType, Signature, Type, TypeParamBound, TypePath,
};

/// How a function runs its body.
pub(crate) enum Shape {
    /// On the thread that calls it.
    Blocking,
    /// An `async fn`.
    Async,
    /// A `fn` that returns a pinned box of a future with this output, such as an `async fn` that
    /// `#[async_trait]` has rewritten.
    Boxed(Box<Type>),
    /// A `fn` that returns `impl Future` with this output.
    Opaque(Box<Type>),
}

/// Read the shape from the signature.
pub(crate) fn shape(sig: &Signature) -> Shape {
    if sig.asyncness.is_some() {
        return Shape::Async;
    }
    let ReturnType::Type(_, output) = &sig.output else {
        return Shape::Blocking;
    };
    of_type(output).unwrap_or(Shape::Blocking)
}

fn of_type(ty: &Type) -> Option<Shape> {
    match ty {
        Type::Group(group) => of_type(&group.elem),
        Type::Paren(paren) => of_type(&paren.elem),
        Type::ImplTrait(opaque) => {
            output(&opaque.bounds).map(|ty| Shape::Opaque(Box::new(ty.clone())))
        }
        Type::Path(TypePath { path, .. }) => {
            boxed(path).map(|ty| Shape::Boxed(Box::new(ty.clone())))
        }
        _ => None,
    }
}

/// The output `T` of `Pin<Box<dyn Future<Output = T> + …>>`, or of the aliases of the crate
/// `futures` for it.
fn boxed(path: &Path) -> Option<&Type> {
    let last = path.segments.last()?;
    match last.ident.to_string().as_str() {
        "BoxFuture" | "LocalBoxFuture" => type_argument(path),
        "Pin" => match type_argument(path)? {
            Type::Path(TypePath { path, .. }) if path.segments.last()?.ident == "Box" => {
                match type_argument(path)? {
                    Type::TraitObject(object) => output(&object.bounds),
                    _ => None,
                }
            }
            _ => None,
        },
        _ => None,
    }
}

/// The last argument of a path that is a type.
fn type_argument(path: &Path) -> Option<&Type> {
    let PathArguments::AngleBracketed(arguments) = &path.segments.last()?.arguments else {
        return None;
    };
    arguments
        .args
        .iter()
        .rev()
        .find_map(|argument| match argument {
            GenericArgument::Type(ty) => Some(ty),
            _ => None,
        })
}

/// The output `T` of a bound `Future<Output = T>`.
fn output<'a>(bounds: impl IntoIterator<Item = &'a TypeParamBound>) -> Option<&'a Type> {
    bounds.into_iter().find_map(|bound| {
        let TypeParamBound::Trait(bound) = bound else {
            return None;
        };
        let last = bound.path.segments.last()?;
        let PathArguments::AngleBracketed(arguments) = &last.arguments else {
            return None;
        };
        if last.ident != "Future" {
            return None;
        }
        arguments.args.iter().find_map(|argument| match argument {
            GenericArgument::AssocType(assoc) if assoc.ident == "Output" => Some(&assoc.ty),
            _ => None,
        })
    })
}

#[cfg(test)]
mod tests {
    use quote::ToTokens;

    use super::*;

    fn shape_of(text: &str) -> (char, String) {
        let sig = syn::parse_str(text).unwrap();
        let (letter, output) = match shape(&sig) {
            Shape::Blocking => return ('-', String::new()),
            Shape::Async => return ('a', String::new()),
            Shape::Boxed(output) => ('b', output),
            Shape::Opaque(output) => ('o', output),
        };
        (letter, output.to_token_stream().to_string())
    }

    #[test]
    fn a_future_is_known_by_the_return_type_that_names_its_output() {
        for (signature, letter, output) in [
            ("fn f()", '-', ""),
            ("fn f() -> Result<u8, E>", '-', ""),
            ("async fn f() -> u8", 'a', ""),
            (
                "fn f() -> impl Future<Output = Result<u8, E>> + Send",
                'o',
                "Result < u8 , E >",
            ),
            (
                "fn f() -> Pin<Box<dyn Future<Output = ()> + 'a>>",
                'b',
                "()",
            ),
            (
                "fn f() -> ::core::pin::Pin<Box<dyn ::core::future::Future<Output = u8> + Send + 'async_trait>>",
                'b',
                "u8",
            ),
            ("fn f() -> futures::future::BoxFuture<'_, u8>", 'b', "u8"),
            ("fn f() -> Ready<u8>", '-', ""),
            ("fn f() -> impl Sized", '-', ""),
            ("fn f() -> Pin<Box<MyFuture>>", '-', ""),
        ] {
            assert_eq!(
                shape_of(signature),
                (letter, output.to_owned()),
                "{signature}"
            );
        }
    }
}
