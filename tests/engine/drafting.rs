//! A draft model beside the network: it changes how many steps there are, and nothing else.

use super::fake::{Control, Fake, engine_with};
use super::*;

/// A network that says what the other one would, but in one of `wrong` places; 0: everywhere.
pub fn draft(layout: StateLayout, wrong: usize) -> (DraftRunner, Arc<Control>) {
    let control = Arc::new(Control::default());
    control.pace_us.store(20, Relaxed);
    control.wrong_every.store(wrong, Relaxed);
    let runner = Box::new(Fake::of(layout, VOCAB, &control));
    (DraftRunner { runner, known: VOCAB, context_length: CONTEXT }, control)
}

fn of(window: Option<usize>, pages: usize) -> StateLayout {
    let paged = [None].into_iter().chain(window.map(Some)).map(|window| PagedGroup { window }).collect();
    StateLayout { paged, pages, slots: 0 }
}

fn specs() -> Vec<Spec> {
    let greedy = SamplerFields { temperature: Some(0.0), ..Default::default() };
    let spread = SamplerFields { temperature: Some(0.9), top_p: Some(0.9), ..Default::default() };
    let penalty = SamplerFields { repetition_penalty: Some(1.3), top_k: Some(9), ..Default::default() };
    let mut specs = Vec::new();
    for (len, fields) in [1, 15, 16, 17, 40]
        .iter()
        .flat_map(|len| [&greedy, &spread, &penalty].map(|fields| (*len, fields.clone())))
    {
        specs.push(sampled(prompt(len as u32 + specs.len() as u32, len), 60, fields));
    }
    for (number, spec) in specs.iter_mut().enumerate() {
        let Kind::Generate { stops, stop_ids, max_tokens, logprobs, .. } = &mut spec.kind else { continue };
        match number % 5 {
            1 => *stops = vec!["$$%%$".into()],
            2 => *max_tokens = 1000,
            3 => *stop_ids = vec![4],
            4 => *logprobs = Some(2),
            _ => {}
        }
    }
    specs
}

#[test]
fn a_draft_model_changes_nothing_but_the_number_of_steps() {
    let plain = StateLayout::plain;
    // alone, the model's layout, the draft's, wrong in one of, rows of a step, tokens of the draft's
    // vocabulary that both know, the draft's context, and how many of the drafted tokens are right at least
    for (alone, layout, its, wrong, rows, known, context, right) in [
        (true, plain(200), of(None, 200), 0, 512, VOCAB, CONTEXT, 0.95),
        (true, plain(200), of(None, 200), 4, 512, VOCAB, CONTEXT, 0.4),
        (false, plain(200), of(None, 400), 0, 512, VOCAB, CONTEXT, 0.95),
        (false, plain(400), of(Some(20), 600), 5, 512, VOCAB, CONTEXT, 0.3),
        // Pages run out, there and here.
        (false, plain(30), of(None, 200), 0, 24, VOCAB, CONTEXT, 0.9),
        (false, plain(200), of(None, 12), 0, 512, VOCAB, CONTEXT, 0.5),
        // Tokens that only one knows, and a shorter context.
        (true, plain(200), of(None, 200), 0, 512, VOCAB - 9, CONTEXT, 0.3),
        (true, plain(200), of(None, 200), 0, 512, VOCAB, 50, 0.9),
        // Recurrent state in the model, which goes back to the last right token.
        (true, StateLayout { slots: 60, ..plain(200) }, of(None, 200), 4, 512, VOCAB, CONTEXT, 0.3),
    ] {
        for prefix_cache in [true, false] {
            let (mut runner, _) = draft(its.clone(), wrong);
            (runner.known, runner.context_length) = (known, context);
            let (engine, control) = engine_with(layout.clone(), Some(runner), |it| {
                it.limits.rows = rows;
                it.prefix_cache = prefix_cache;
            });
            control.pace_us.store(300, Relaxed);
            let specs = specs();
            let bursts: Vec<&[Spec]> = if alone { specs.chunks(1).collect() } else { vec![&specs] };
            for specs in bursts {
                burst(&engine, &control, specs);
            }
            // Beside everything else that can be asked.
            burst(&engine, &control, &(0..18).filter(|it| it % 9 != 7).map(mixed).collect::<Vec<_>>());
            let stats = engine.stats();
            let (drafted, accepted) = (stats.model_drafted as f64, stats.model_accepted as f64);
            println!(
                "{accepted} of {drafted} drafted, {} steps, {} tokens",
                stats.steps, stats.completion_tokens
            );
            assert!(drafted > 100.0 && accepted >= right * drafted, "{alone} {its} {wrong}: {stats:?}");
            assert!(stats.accepted >= stats.model_accepted && stats.draft_steps > 0, "{stats:?}");
        }
    }
}

#[test]
fn a_draft_model_that_fails_fails_alone() {
    for garbles in [false, true] {
        let (runner, its) = draft(of(None, 200), 0);
        let (engine, control) = engine_with(StateLayout::plain(200), Some(runner), |it| it.limits.rows = 512);
        control.pace_us.store(300, Relaxed);
        let fault = if garbles { &its.garble_on } else { &its.fail_on };
        fault.store(3, Relaxed);
        burst(&engine, &control, &specs());
        fault.store(0, Relaxed);
        burst(&engine, &control, &specs());
    }
}

#[test]
fn a_useless_draft_model_costs_next_to_nothing() {
    let (runner, its) = draft(of(None, 200), 1);
    let (engine, control) = engine_with(StateLayout::plain(200), Some(runner), |it| it.limits.rows = 512);
    control.pace_us.store(300, Relaxed);
    for number in 0..40 {
        let spec = generate(prompt(number + 1, 20), 60);
        assert_eq!(ask(&engine, &spec).unwrap(), expected(&spec));
    }
    let stats = engine.stats();
    // An advance of 16 tokens, then one part in 50, in steps that take a fifteenth.
    let (steps, most) = (its.steps.load(Relaxed) as u64, 16 * 15 + stats.steps * 15 / 50);
    assert!(steps < most, "{steps} steps of the draft model, at most {most}: {stats:?}");
}

#[test]
fn what_cannot_draft_is_refused() {
    let network = || Box::new(Fake::new(20, VOCAB, &Arc::default()));
    type Change = fn(&mut DraftRunner);
    let bad: [(StateLayout, Change); 5] = [
        (StateLayout { slots: 4, ..of(None, 20) }, |_| {}),
        (of(None, 0), |_| {}),
        (of(None, 20), |it| it.known = 0),
        (of(None, 20), |it| it.known = VOCAB + 1),
        (of(None, 20), |it| it.context_length = 0),
    ];
    for (layout, change) in bad {
        let (mut runner, _) = draft(layout.clone(), 0);
        change(&mut runner);
        let refused = EngineHandle::start_with(network(), Some(runner), EngineOptions::new(CONTEXT));
        let error = refused.err().unwrap_or_else(|| panic!("{layout} was taken"));
        assert_eq!(error.kind(), ErrorKind::InvalidRequest, "{error}");
        assert!(error.to_string().contains("draft model"), "{error}");
    }
}
