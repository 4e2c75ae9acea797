//! The boundary of safe code: whatever a caller asks of the public functions, they panic with a word or do what is right. Run under
//! AddressSanitizer and valgrind by scripts/check-kernels.sh, where a reach past what was given ends the run.
#![forbid(unsafe_code)]

use super::*;

/// The panic's text, if `work` panics in the caller's thread; otherwise the reason that broke a pool, if it is returned.
fn refused(work: impl FnOnce() -> Option<String>) -> Option<String> {
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)) {
        Ok(broken) => broken,
        Err(e) => Some(match (e.downcast_ref::<String>(), e.downcast_ref::<&str>()) {
            (Some(text), _) => text.clone(),
            (_, Some(text)) => text.to_string(),
            _ => "a panic".to_string(),
        }),
    }
}

/// Every set must refuse.
fn all_refuse(what: &str, work: impl Fn(&mut Team)) {
    for set in KernelSet::available() {
        let got = refused(|| {
            let mut team = Team::new(set, 2, 2, false).unwrap();
            work(&mut team);
            team.broken()
        });
        assert!(got.is_some(), "{set:?} took {what}");
    }
}

/// A page arena of one layer.
fn arena(kv_heads: usize, head_dim: usize, pages: usize) -> KvArena {
    KvArena::new(KvShape::uniform(1, kv_heads, head_dim, KvElement::F32), pages).unwrap()
}

fn unit(rows: u32, heads: u32) -> AttentionUnit {
    AttentionUnit { segment: 0, row: 0, rows, head: 0, heads, padded_context: 0 }
}

fn places(rows: u32) -> Vec<Row> {
    (0..rows).map(|p| Row { position: p, page: p / PAGE as u32 }).collect()
}

/// A team made for heads of 2 was once asked for heads of 64 and wrote past its scratch.
#[test]
fn a_team_makes_room_for_heads_wider_than_it_was_made_for() {
    for set in KernelSet::available() {
        let mut results = Vec::new();
        for made_for in [0, 2, 64] {
            let mut team = Team::new(set, 1, made_for, false).unwrap();
            let (kv, rows) = (arena(1, 64, 4), places(48));
            let mut q = Rows::new(48, 64);
            q.row_mut(7).fill(1.0);
            let mut out = Activations::new(48, 64, false);
            team.attention(
                &[unit(48, 1)],
                &rows,
                &[Context::Pages(&[0, 1, 2])],
                &kv,
                0,
                Attending::plain(1),
                &q,
                &mut out,
            );
            assert_eq!(team.broken(), None);
            results.push(out);
        }
        assert!(results.iter().all(|r| r.same_bits(&results[0])), "{set:?}");
    }
}

#[test]
fn attention_refuses_units_that_reach_past_what_they_were_given() {
    let context = [0u32, 1, 2];
    let run = |team: &mut Team,
               units: &[AttentionUnit],
               rows: &[Row],
               heads: usize,
               kv: &KvArena,
               q: &Rows,
               width: usize| {
        let mut out = Activations::new(rows.len(), width, false);
        team.attention(
            units,
            rows,
            &[Context::Pages(&context)],
            kv,
            0,
            Attending::plain(heads),
            q,
            &mut out,
        );
    };
    let (kv, rows, q) = (arena(1, 16, 4), places(40), Rows::new(40, 32));
    let what = |name: &str, u: AttentionUnit| {
        all_refuse(name, |team| run(team, &[u], &rows, 2, &kv, &q, 32));
    };
    // 65536 x 65536 is 0 in 32 bits, and so is u32::MAX + 1.
    what("rows x heads that wrap", unit(65536, 65536));
    what("rows that wrap", AttentionUnit { row: u32::MAX, rows: 2, ..unit(1, 1) });
    what("heads that wrap", AttentionUnit { head: u32::MAX, heads: 2, ..unit(1, 1) });
    what("more rows than a unit holds", unit(40, 2));
    what("rows past the batch", AttentionUnit { row: 39, ..unit(2, 1) });
    what("heads past the last", AttentionUnit { head: 2, ..unit(1, 1) });
    what("no rows", unit(0, 1));
    what("no heads", unit(1, 0));
    what("a segment that is not there", AttentionUnit { segment: 1, ..unit(1, 1) });
    all_refuse("two units of one row", |team| {
        run(team, &[unit(1, 1), unit(1, 2)], &rows, 2, &kv, &q, 32)
    });
    let far = [Row { position: 48, page: 0 }];
    all_refuse("a position past the pages", |team| run(team, &[unit(1, 1)], &far, 2, &kv, &q, 32));
    let falling = [Row { position: 5, page: 0 }, Row { position: 4, page: 0 }];
    all_refuse("positions that fall", |team| run(team, &[unit(2, 1)], &falling, 2, &kv, &q, 32));
    let small = arena(1, 16, 2);
    all_refuse("pages past the arena", |team| run(team, &[unit(1, 1)], &rows, 2, &small, &q, 32));
    all_refuse("queries of another width", |team| {
        run(team, &[unit(1, 1)], &rows, 2, &kv, &Rows::new(40, 16), 32)
    });
    all_refuse("too few queries", |team| {
        run(team, &[unit(1, 1)], &rows, 2, &kv, &Rows::new(39, 32), 32)
    });
    all_refuse("an output of another width", |team| {
        run(team, &[unit(1, 1)], &rows, 2, &kv, &q, 48)
    });
    all_refuse("no query heads", |team| run(team, &[], &rows, 0, &kv, &Rows::new(40, 0), 0));
    let odd = arena(3, 16, 4);
    all_refuse("heads that kv heads do not divide", |team| {
        run(team, &[unit(1, 1)], &rows, 2, &odd, &q, 32)
    });
    // Heads whose width wraps to that of the queries.
    all_refuse("a width that wraps", |team| run(team, &[], &[], 1 << 60, &kv, &Rows::new(0, 0), 0));
    let by = |by: Attending, team: &mut Team| {
        let mut out = Activations::new(40, 32, false);
        team.attention(&[unit(1, 1)], &rows, &[Context::Pages(&context)], &kv, 0, by, &q, &mut out);
    };
    all_refuse("a window of nothing", |team| {
        by(Attending { window: Some(0), ..Attending::plain(2) }, team)
    });
    all_refuse("too few sinks", |team| {
        by(Attending { sinks: Some(&[0.0]), ..Attending::plain(2) }, team)
    });
    all_refuse("a cap of nothing", |team| {
        by(Attending { cap: Some(0.0), ..Attending::plain(2) }, team)
    });
    all_refuse("a copy that is shorter than it must be", |team| {
        let copy = kv.copy_layer(0, &[0]);
        let mut out = Activations::new(40, 32, false);
        let units = [AttentionUnit { row: 16, ..unit(1, 1) }];
        team.attention(
            &units,
            &rows,
            &[Context::Copy(&copy)],
            &kv,
            0,
            Attending::plain(2),
            &q,
            &mut out,
        );
    });
    all_refuse("a layer that is not there", |team| {
        let mut out = Activations::new(40, 32, false);
        team.attention(&[], &rows, &[], &kv, 1, Attending::plain(2), &q, &mut out);
    });
    assert!(
        refused(|| Some(kv.copy_layer(0, &[4]).len().to_string()))
            .is_some_and(|e| e.contains("page 4 of 4"))
    );
}

#[test]
fn padding_past_the_pages_is_computed_on_those_that_there_are() {
    for set in KernelSet::available() {
        let mut team = Team::new(set, 1, 16, false).unwrap();
        let (kv, q, rows) = (arena(1, 16, 4), Rows::new(1, 16), places(1));
        let mut out = Activations::new(1, 16, false);
        let units = [AttentionUnit { padded_context: 5000, ..unit(1, 1) }];
        team.attention(
            &units,
            &rows,
            &[Context::Pages(&[0])],
            &kv,
            0,
            Attending::plain(1),
            &q,
            &mut out,
        );
        assert_eq!((team.broken(), out.row(0)), (None, &[0.0; 16][..]));
    }
}

#[test]
fn heads_of_no_width_and_layers_without_heads_are_refused() {
    for (kv_heads, head_dim) in [(1, 0), (0, 16), (0, 0)] {
        let kv = arena(kv_heads, head_dim, 4);
        all_refuse("attention without heads", |team| {
            let mut out = Activations::new(1, head_dim, false);
            team.attention(
                &[unit(1, 1)],
                &places(1),
                &[Context::Pages(&[0])],
                &kv,
                0,
                Attending::plain(1),
                &Rows::new(1, head_dim),
                &mut out,
            );
        });
        all_refuse("keys without heads", |team| {
            let by = HeadsBy {
                norms: None,
                rotated_first: false,
                table: None,
                scale: 1.0,
                row_scales: None,
            };
            let (mut q, k) = (Rows::new(1, head_dim), Rows::new(1, kv_heads * head_dim));
            team.heads(&mut q, &k, &k, &places(1), &by, &mut arena(kv_heads, head_dim, 1), 0, 1);
        });
    }
}

#[test]
fn sizes_that_memory_cannot_hold_panic_or_are_an_error_and_never_wrap() {
    type Make = fn() -> String;
    let all: [(&str, Make); 9] = [
        ("rows", || Rows::new(1 << 60, 16).count().to_string()),
        ("a row", || Rows::new(1, usize::MAX - 3).count().to_string()),
        ("activations", || Activations::new(1 << 59, 32, true).row(0).len().to_string()),
        ("activations of no width", || {
            Activations::new(usize::MAX, 33, true).row(0).len().to_string()
        }),
        ("a panel of f32", || panel_bytes(Format::F32, 1 << 58).to_string()),
        ("a panel of bf16", || panel_bytes(Format::Bf16, usize::MAX).to_string()),
        ("a panel of blocks", || panel_bytes(Format::Q8_0, usize::MAX).to_string()),
        ("panels", || Panels::new(Format::F32, 16, 1 << 58, &[]).wide_floats().to_string()),
        ("columns", || padded(usize::MAX - 3).to_string()),
    ];
    for (what, make) in all {
        let result = std::panic::catch_unwind(make);
        assert!(result.is_err(), "{what}: {result:?}");
    }
    assert_eq!(Rows::bytes(1 << 60, 16), usize::MAX);
    assert_eq!(Activations::bytes(1 << 60, 64, true), usize::MAX);
    assert_eq!(Team::scratch_bytes(1 << 40, 1 << 60, 64), usize::MAX);
    for shape in [
        KvShape::uniform(1 << 10, 1 << 40, 1 << 40, KvElement::F16),
        KvShape::uniform(2, 1, usize::MAX - 5, KvElement::F32),
        KvShape::new(vec![KvLayer { kv_heads: usize::MAX, head_dim: 2 }], KvElement::F32),
    ] {
        assert_eq!(shape.page_bytes(), usize::MAX);
        for pages in [0, 1, 1 << 20] {
            assert!(KvArena::new(shape.clone(), pages).is_err());
        }
    }
    assert!(KvArena::new(KvShape::uniform(1, 1, 16, KvElement::F32), usize::MAX).is_err());
}

#[test]
fn products_and_norms_refuse_what_does_not_fit() {
    let data = vec![0u8; panel_bytes(Format::F32, 7) * 2];
    let m = Panels::new(Format::F32, 17, 7, &data);
    let fits = |rows, width| (Activations::new(rows, width, false), Rows::new(rows, 17));
    all_refuse("an input that is too narrow", |team| {
        let (input, mut out) = fits(3, 6);
        team.product(&m, &input, 3, None, &mut out);
    });
    all_refuse("more rows than there are", |team| {
        let (input, mut out) = fits(3, 7);
        team.product(&m, &input, 4, None, &mut out);
    });
    all_refuse("an output of another width", |team| {
        team.product(&m, &Activations::new(3, 7, false), 3, None, &mut Rows::new(3, 16));
    });
    for bias in [vec![0.0; 17], vec![0.0; 48]] {
        all_refuse("a bias of another length", |team| {
            let (input, mut out) = fits(3, 7);
            team.add_product(&m, &input, 3, &mut out, Some(&bias), 1.0);
        });
    }
    all_refuse("a bias with something behind its end", |team| {
        let (input, mut out) = fits(3, 7);
        team.add_product(&m, &input, 3, &mut out, Some(&[1.0; 32]), 1.0);
    });
    let blocks = vec![0u8; panel_bytes(Format::Q8_0, 64) * 2];
    let quantized = Panels::new(Format::Q8_0, 17, 64, &blocks);
    all_refuse("an input without blocks", |team| {
        team.product(&quantized, &Activations::new(3, 64, false), 3, None, &mut Rows::new(3, 17));
    });
    all_refuse("a place of another length", |team| {
        let mut place = vec![0.0; 16];
        team.head(
            &m,
            &Activations::new(3, 7, false),
            &Scoring::PLAIN,
            &mut [ScoreRequest::All(&mut place)],
        );
    });
    let (ones, rows) = (vec![1.0; 48], Rows::new(4, 33));
    let norm =
        |weights: &[f32], pick: Option<&[u32]>, n: usize, out_width: usize, team: &mut Team| {
            let mut out = Activations::new(2, out_width, false);
            team.norm(&rows, pick, 2, &NormWeights::rms(weights, 1e-5), n, &mut out);
        };
    all_refuse("weights of another length", |team| norm(&ones[..32], None, 33, 33, team));
    all_refuse("rows of another width", |team| norm(&ones, None, 49, 49, team));
    all_refuse("a width that wraps to none", |team| norm(&[], None, usize::MAX - 3, 33, team));
    all_refuse("a row that is not there", |team| norm(&ones, Some(&[3, 4]), 33, 33, team));
    all_refuse("an output of another width", |team| norm(&ones, None, 33, 34, team));
    all_refuse("activations of another width", |team| {
        team.activate(None, &rows, ActivationFn::Silu, 4, &mut Activations::new(4, 16, false));
    });
    all_refuse("the clamped activation without a gate", |team| {
        let clamped = ActivationFn::Clamped { limit: 7.0, alpha: 1.702 };
        team.activate(None, &rows, clamped, 4, &mut Activations::new(4, 33, false));
    });
    all_refuse("blocks of rows that are no multiple of 32", |team| {
        team.activate(None, &rows, ActivationFn::Silu, 4, &mut Activations::new(4, 33, true));
    });
    all_refuse("a branch of another width", |team| {
        let by = NormWeights::rms(&ones, 1e-5);
        team.add_normed(&mut Rows::new(4, 16), Some(&by), 33, 1.0, 4, &mut Rows::new(4, 33));
    });
}

#[test]
fn what_was_handed_in_and_is_right_gives_the_right_result() {
    for set in KernelSet::available() {
        // A norm of picked rows 33 wide, with int8 blocks that hold 32 of them.
        let mut team = Team::new(set, 2, 2, false).unwrap();
        let mut x = Rows::new(4, 33);
        (0..4).for_each(|r| x.row_mut(r)[..33].fill(r as f32 + 1.0));
        let mut out = Activations::new(2, 33, true);
        team.norm(&x, Some(&[3, 0]), 2, &NormWeights::rms(&[1.0; 48], 0.0), 33, &mut out);
        assert!((0..2).all(|r| out.row(r)[..33].iter().all(|x| (x - 1.0).abs() < 1e-6)), "{set:?}");
        // All scores of a matrix whose last panel is almost empty.
        let data = vec![0u8; panel_bytes(Format::F32, 7) * 2];
        let m = Panels::new(Format::F32, 17, 7, &data);
        let mut places = vec![vec![1.0; 17]; 3];
        let mut wants: Vec<ScoreRequest> =
            places.iter_mut().map(|p| ScoreRequest::All(p)).collect();
        let scores = team.head(&m, &Activations::new(3, 7, false), &Scoring::PLAIN, &mut wants);
        assert!(matches!(scores[..], [Scores::All(_), Scores::All(_), Scores::All(_)]));
        assert!(places.iter().flatten().all(|s| *s == 0.0) && team.broken().is_none(), "{set:?}");
        // Nothing of nothing.
        assert!(team.head(&m, &Activations::new(0, 7, false), &Scoring::PLAIN, &mut []).is_empty());
        team.product(&m, &Activations::new(0, 7, false), 0, None, &mut Rows::new(0, 17));
        team.fill(&mut x, 4, 20, |_, row| row.fill(f32::NAN));
        assert!(x.row(1)[20..].iter().all(|x| *x == 0.0), "what lies past the width is zero");
    }
}

#[test]
fn keys_and_values_are_refused_where_they_have_no_place() {
    let rows = |position, page| [Row { position, page }];
    let run = |team: &mut Team, rows: &[Row], by: &HeadsBy, kv_width: usize| {
        let (mut q, k) = (Rows::new(rows.len(), 32), Rows::new(rows.len(), kv_width));
        team.heads(&mut q, &k, &k, rows, by, &mut arena(1, 16, 2), 0, 2);
    };
    let by =
        |table| HeadsBy { norms: None, rotated_first: false, table, scale: 1.0, row_scales: None };
    let table = vec![0.0; 3 * 32];
    let mut team = Team::new(KernelSet::best(), 1, 2, false).unwrap();
    run(
        &mut team,
        &[Row { position: 2, page: 1 }, Row { position: 2, page: Row::NOWHERE }],
        &by(Some(&table)),
        16,
    );
    assert_eq!(team.broken(), None);
    all_refuse("a position without a rotation", |team| {
        run(team, &rows(3, 0), &by(Some(&table)), 16)
    });
    all_refuse("a page that is not there", |team| run(team, &rows(0, 2), &by(None), 16));
    all_refuse("one place for two rows", |team| {
        run(team, &[rows(0, 1)[0], rows(16, 1)[0]], &by(None), 16)
    });
    all_refuse("keys of another width", |team| run(team, &rows(0, 0), &by(None), 32));
    let scales = HeadsBy { row_scales: Some(&[1.0, 2.0]), ..by(None) };
    all_refuse("scales of other rows", |team| run(team, &rows(0, 0), &scales, 16));
    let narrow = HeadsBy { norms: Some([NormWeights::rms(&[1.0; 8], 1e-5); 2]), ..by(None) };
    all_refuse("a norm of another width", |team| run(team, &rows(0, 0), &narrow, 16));
}
