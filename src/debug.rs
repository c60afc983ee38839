//! `Debug` of the types that show only some of their fields.

/// Implements `Debug` for a type: its name, the given fields, and `..` for the others.
macro_rules! debug_fields {
    (
        $Type:ident $(<$($Parameter:ident),+>)?,
        |$this:pat_param| $($field:ident = $value:expr),*
    ) => {
        impl $(<$($Parameter),+>)? std::fmt::Debug for $Type $(<$($Parameter),+>)? {
            fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                let $this = self;
                let mut shown = formatter.debug_struct(stringify!($Type));
                $(shown.field(stringify!($field), &$value);)*
                shown.finish_non_exhaustive()
            }
        }
    };
}

pub(crate) use debug_fields;
