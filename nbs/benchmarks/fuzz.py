#!/usr/bin/env python3
"""Breaks configurations, commands, presets, notebooks, data, language models, coders, models, stores, run directories and checkpoints in 1,000 ways, and looks at how each is refused.

    python fuzz.py fuzz.jsonl               1,000 cases (some seven minutes of one core)
    python fuzz.py fuzz.jsonl --n 60        a sample, the same for the same --seed

A refusal is clean when it is a `ValueError` or an `OSError` (on the command line: exit code 2 and one line) that names the thing that is wrong, comes at once, and leaves no file behind.
What is accepted must be right: a value of the right type within its bounds, or a file that still says the same.
"""
import argparse,contextlib,dataclasses,io,json,math,os,random,resource,shutil,signal,struct,sys,tempfile,time
from pathlib import Path

import torch
import yaml

JUNK = (None, True, False, 0, -1, 1, 2, 3.7, -.5, 1e300, 10**30, -10**9, float('nan'), float('inf'), -float('inf'), '', 'x', 'none', 'nan', '1', '🙂', 'a'*5000, b'bytes', [], [1], [None], ['a', 'b'], [-1, float('nan')],
        10**400, 5e-324, '\0', 'a\nb', 'ü'*300, '\u202eabc', (), (3, 2), (0,), {}, dict(a=1), [[1]], {1, 2}, object(), lambda: 0, 1j, torch.zeros(2), range(3), type)
SECONDS = 20

class Hangs(Exception): pass
def _late(*a): raise Hangs('takes too long')

def _tree(folder): return {o.relative_to(folder).as_posix(): o.stat().st_size if o.is_file() else -1 for o in sorted(folder.rglob('*'))}

def look(do, names, folder, command=False, right=lambda found: False, seconds=SECONDS, writes=False):
    "Do it, and say how it went: `refused` and `fine` are clean, everything else is not"
    before,heard = _tree(folder),io.StringIO()
    signal.signal(signal.SIGALRM, _late); signal.alarm(seconds)
    how,what = 'fine',''
    try:
        with contextlib.redirect_stdout(heard), contextlib.redirect_stderr(heard): found = do()
        said = heard.getvalue()
        if command and found: how,what = 'refused' if found == 2 else f'exit {found}',said.strip()
        elif not right(found): how = 'accepted'
    except Hangs as e: how,what = 'hangs',str(e)
    except (ValueError, OSError) as e: how,what = type(e).__name__ if command else 'refused',str(e)
    except BaseException as e: how,what = type(e).__name__,str(e)
    finally: signal.alarm(0)
    if how == 'refused' and (command and len(what.splitlines()) != 1 or 'Traceback' in what): how = 'more than a line'
    if how == 'refused' and not any(str(o) and str(o) in what for o in names): how = 'does not name it'
    if how != 'fine' and not writes and (left := {k for k,v in _tree(folder).items() if before.get(k) != v}): how,what = 'leaves files',str(sorted(left))
    return how,what[:300]

# ------------------------------------------------------------------ configurations
def configs():
    "Every configuration there is"
    from sae_ception.cycle import CycleConfig
    from sae_ception.interpret.pieces import SampleConfig
    from sae_ception.plan import PlanConfig
    from sae_ception.pretraining import PretrainConfig
    from sae_ception.rows import Masks
    from sae_ception.sae.coders import SAEConfig
    from sae_ception.sae.generator import WorldConfig
    from sae_ception.sae.losses import LossConfig
    from sae_ception.sae.synthetic import Tree
    from sae_ception.sae.training import SAETrainConfig
    from sae_ception.sharpening import SharpenConfig
    from sae_ception.training import Auxiliary,TrainConfig
    return [CycleConfig, SampleConfig, PlanConfig, PretrainConfig, Masks, SAEConfig, WorldConfig, LossConfig, Tree, SAETrainConfig, SharpenConfig, TrainConfig, Auxiliary]

def _right_type(value, field):
    kind = field.type if isinstance(field.type, str) else field.type.__name__
    if kind == 'object': return isinstance(value, (int, float, str)) or value is None or callable(value)
    if value is None: return field.default is None
    if kind == 'bool': return isinstance(value, bool)
    if isinstance(value, bool): return False
    if kind == 'int': return isinstance(value, int)
    if kind == 'float': return isinstance(value, (int, float)) and math.isfinite(value)
    if kind == 'tuple': return isinstance(value, (tuple, list)) and all(isinstance(o, (int, float, str)) and o == o for o in value)
    return isinstance(value, dict(str=str, dict=dict).get(kind, ()))

def broken_config(rng, d):
    kind = rng.choice(configs())
    fields = rng.sample(dataclasses.fields(kind), min(len(dataclasses.fields(kind)), rng.choice((1, 1, 1, 2))))
    values = {f.name: rng.choice(JUNK) for f in fields}
    return f'{kind.__name__}({", ".join(f"{k}={str(v)[:40]!r}" for k,v in values.items())})',lambda: kind(**values),[*values, kind.__name__],dict(right=lambda o: all(_right_type(values[f.name], f) for f in fields))

# ------------------------------------------------------------------ what experiments check before they begin
SETUPS = dict(cycle='run_cycles(', study='run_study(', lm_sae='run = Run(', pretrain='run = Run(', sae='run = Run(', baseline='run = Run(')
BAD = dict(int=(-1, 0, 10**9, -10**9), float=(-1., 0., math.nan, math.inf, 1e30), str=('x', '', 'none', '🙂', '-1', 'mlp:', 'gpt2:x', '../..', 'a,b', '%', '0%', '1e9'), bool=(True, False))

def broken_setup(rng, d):
    "An experiment's cells up to its run, with one parameter of the right type and an odd value"
    from sae_ception.launch import experiments,parameters,read_cells
    name = rng.choice(list(SETUPS))
    file = experiments()[name]
    knobs = {k: p for k,p in parameters(file).items() if p.kind and k != 'out'}
    knob = rng.choice(list(knobs))
    one = lambda: rng.choice(BAD[knobs[knob].kind])
    value = rng.choice(([], [one()], [one(), one()])) if knobs[knob].many else one()
    def do():
        space = dict(__name__='__main__', display=lambda *a: None)
        cells = [source for kind,source,tags in read_cells(file) if kind == 'code']
        exec(cells[0], space)
        space[knob] = value
        for o in cells[1:]:
            if SETUPS[name] in o: exec(o.partition(SETUPS[name])[0].rpartition('\n')[0], space); return
            exec(o, space)
    finite = lambda o: all(map(finite, o)) if isinstance(o, list) else not isinstance(o, float) or math.isfinite(o)
    words = (repr(value), str(value), knob, knob.rpartition('_')[2], *(map(repr, value) if isinstance(value, list) else ()))
    return f'{name} {knob}={value!r}',do,words,dict(right=lambda o: finite(value))

# Experiments that run through, as small as can be, with values that may be odd but do not take for ever
TINY = dict(cycle=dict(cycles=1, epochs=1, tune_epochs=1, sae_epochs=1, width=16, sae_k=8), baseline=dict(epochs=1), sae=dict(epochs=1, sae_epochs=1, width=16), auxiliary=dict(epochs=1), study=dict(seeds=[0], cycles=1, epochs=1, tune_epochs=1, sae_epochs=1, width=16),
            lm_sae=dict(model_name='gpt2:16x1', layer=0, vocab_size=300, pretrain_tokens=1000, training_tokens=2048, eval_tokens=600, buffer_tokens=1024, n_evals=1, n_checkpoints=0, context_size=16),
            plan=dict(model='gpt2'), cost=dict(model='gpt2'), features={}, compare={}, health={})
ODD = dict(int=(-1, 0, 1, 2, 3, 7), float=(-1., 0., 1e-30, .5, 1., 2., math.nan, math.inf, -math.inf), str=BAD['str'], bool=(True, False))

def broken_experiment(rng, d):
    "All cells of an experiment, with one odd value, or with a run or a coder to read that is none"
    from sae_ception.launch import experiments,parameters,read_cells
    name = rng.choice(list(TINY))
    file = experiments()[name]
    knobs = {k: p for k,p in parameters(file).items() if p.kind and k not in ('out', 'device', 'log_to', 'processes')}
    if not TINY[name]: knobs = {k: knobs[k] for k in ('run', 'sae_path') if k in knobs} # whatever else, these would train first
    knob = rng.choice(list(knobs))
    one = lambda: rng.choice(ODD[knobs[knob].kind])
    value = rng.choice(([], [one()], [one(), one()])) if knobs[knob].many else one()
    if knob in ('run', 'sae_path', 'source'):
        value = d/rng.choice(('nowhere', 'empty', 'file.txt', 'run', 'ü'*40, 'a'*300))
        if value.name in ('empty', 'run'): value.mkdir()
        if value.name == 'file.txt': value.write_text('nothing')
        if value.name == 'run': (value/'config.json').write_text(rng.choice(('{}', '[1]', 'nan', '{"hash": 1, "config": {"task": 5}, "versions": {}}')))
        value = str(value)
    def do():
        space = dict(__name__='__main__', display=lambda *a: None)
        cells = [source for kind,source,tags in read_cells(file) if kind == 'code']
        exec(cells[0], space)
        space.update(TINY[name], **{knob: value}, out=str(d/'out'))
        import matplotlib.pyplot as plt
        try:
            for o in cells[1:]: exec(o, space)
        finally: plt.close('all')
    finite = lambda o: all(map(finite, o)) if isinstance(o, list) else not isinstance(o, float) or math.isfinite(o)
    words = (repr(value), str(value), knob, knob.rpartition('_')[2], knob.partition('_')[0], *(map(repr, value) if isinstance(value, list) else ()))
    return f'{name} {knob}={str(value)[:60]!r}',do,words,dict(right=lambda o: finite(value), seconds=120, writes=True)

# ------------------------------------------------------------------ the command line, presets and notebooks
class Begun(Exception): "The launcher has nothing against it, and would begin"

@contextlib.contextmanager
def nothing_runs(at):
    "Inside the block the launcher goes as far as executing a notebook, and no further"
    from sae_ception import launch
    def stop(*a, **k): raise Begun
    old,here,launch.execute = launch.execute,os.getcwd(),stop
    os.chdir(at)
    try: yield
    finally: launch.execute = old; os.chdir(here)

def _command(words, d):
    from sae_ception.__main__ import main
    def do():
        with nothing_runs(d):
            try: return main([str(o) for o in words])
            except Begun: return 0
            except SystemExit as e: return e.code # argparse's own
    return do

def _mistyped(rng, word):
    "A word with one letter left out, doubled or changed"
    i = rng.randrange(len(word))
    return rng.choice((word[:i] + word[i+1:], word[:i] + word[i] + word[i:], word[:i] + rng.choice('abcxyz-=.,') + word[i+1:]))

def _usable(p, text): # is this text a value of the parameter?
    from sae_ception.launch import parse_value
    try: parse_value(p, text); return True
    except ValueError: return False

def broken_command(rng, d):
    from sae_ception.launch import experiments,parameters
    name = rng.choice(list(experiments()))
    knobs = parameters(experiments()[name])
    knob = rng.choice([o for o in knobs if o != 'out'])
    junk = lambda: rng.choice(('', 'x', '1e', '--1', 'nan', 'inf', '1,2,3', 'true,false', '1.5.2', '[1]', '{}', '🙂', '10'*400, '0x10', '1 2', ',', 'None,', 'a=b', '\0', '-'))
    kind = rng.choice(('name', 'value', 'experiment', 'option', 'form', 'twice', 'out', 'sweep'))
    words,names,right = [name],[knob, name],lambda o: False
    if kind == 'name':
        wrong = _mistyped(rng, knob)
        words.append(f'{wrong}=1'); names = [wrong.partition('=')[0] or '=', wrong]
        right = lambda o: wrong.partition('=')[0] in knobs
    if kind == 'value':
        text = junk(); words.append(f'{knob}={text}')
        right = lambda o: _usable(knobs[knob], text.split(',') if knobs[knob].many and text else text)
    if kind == 'experiment': words[0] = wrong = _mistyped(rng, name); names = [wrong]; right = lambda o: wrong == name
    if kind == 'option': words += rng.choice((['--swep'], ['--jobs', 'x'], ['--jobs', '-1'], ['--part', '3'], ['--sweep', '--part', '99'], ['--preset'], ['--preset', 'no/such'], ['--until'], ['--slurm', 'gpus=x'], ['--sweep', '--slurm', 'time=x'],
                                              ['--sweep', '--jobs', '2', '--part', '0'], ['--resume'], ['--sweep', '--jobs', '0'], ['--out'])); names = words[1:] + ['resume', 'slurm', 'sweep', 'argument']
    if kind == 'form': word = rng.choice(('lr', '=3', knob, '', ' ', '=', '-')); words.append(word); names = [word, '=', 'parameter']
    if kind == 'twice': words += [f'{knob}=1', f'{knob}=2']
    if kind == 'out': words.append('out=here'); names = ['--out']
    if kind == 'sweep': words += ['--sweep', f'{knob}=1,1']; right = lambda o: knobs[knob].many and _usable(knobs[knob], '1,1')
    return ' '.join(map(str, words))[:120],_command(words, d),[*names, *(repr(o)[1:-1] for o in names), "''"],dict(command=True, right=lambda o: right(o))

BOMB = 'a: &a [x, x, x, x, x, x, x, x, x]\n' + ''.join(f'{c}: &{c} [*{p}, *{p}, *{p}, *{p}, *{p}, *{p}, *{p}, *{p}, *{p}]\n' for p,c in zip('abcdefgh', 'bcdefghi')) + 'seed: *i\n'
PRESETS = ('[1, 2', 'seed: [', 'seed: 1\n  lr: 2', '\tseed: 1', '- seed', '42', 'just text', '', '---\n---\nseed: 1\n', 'seed: {a: 1}', 'seed: [[1]]', 'seed: 2024-01-01', 'seed: !!python/object/apply:os.system [ls]', 'seed: !!binary aGk=', BOMB,
           'seeed: 1', 'seed: .nan', 'seed: .inf', 'seed: 1e400', 'seed: ~', 'seed: yes', '1: 2', '? [a, b]\n: 1', 'seed: &a [*a]', '<<: [1]', 'seed: 1\nseed: x', 'null: 1', '? {a: 1}\n: 1', 'out: here', 'epochs: "ten"', 'epochs: [1, 2]',
           'lr: [[1e-3]]', '%YAML 9.9\n---\nseed: 1', '&a seed: *b', 'seed: ' + '9'*5000, 'true: 1', 'sae: [relu, topk]', 'attack: 5x', 'attack: {a: 1}', 'model: 5', 'model: [a]', 'lazy: maybe', '! seed', 'epochs: 1_0x', '@seed: 1', 'seed: *nothing', 'seed: "\\xZZ"')
FINE = 'epochs: 10', 'seed: 1\nlr: 1e-4'

def broken_preset(rng, d):
    text = rng.choice(PRESETS)
    raw = text.encode()
    if rng.random() < .3: # bytes that are no text, or a preset that a transfer cut or mixed up
        base = bytearray(rng.choice((raw, b'epochs: 10\nlr: 1e-3\nmodel: mlp\nattack: [0.1, 0.2]\n')))
        for _ in range(rng.randint(1, 6)): base[rng.randrange(len(base)):][:0] = b''; base.insert(rng.randrange(len(base) + 1), rng.randrange(256))
        raw = bytes(base)
    file = d/'broken.yaml'
    file.write_bytes(raw)
    def right(found): # accepted: then it must be a mapping of known names
        values = yaml.safe_load(raw)
        from sae_ception.launch import experiments,grid,parameters
        return isinstance(values, dict) and bool(grid(parameters(experiments()['cycle']), values))
    names = ['broken.yaml', *(o.partition(':')[0].strip(' "?&!') for o in text.splitlines() if ':' in o), 'no parameter', 'parameter', 'epochs=', 'lr=', 'model=', 'attack=']
    return repr(raw[:80]),_command(['cycle', '--preset', file], d),[*names, 'out'],dict(command=True, right=right)

VALUES = (None, True, -1, 0, 10**30, -5.5, math.nan, math.inf, '', 'x', 'ü'*200, '1e400', '🙂', [], [1], ['a', None], [[1]], {}, dict(a=1), 'a\nb', '\0', [math.nan], 2**63, '../..', 'none')

def broken_value(rng, d):
    "A preset that gives a parameter of any experiment a value of any type"
    from sae_ception.launch import experiments,parameters
    name = rng.choice(list(experiments()))
    knobs = {k: p for k,p in parameters(experiments()[name]).items() if k != 'out'}
    knob,value = rng.choice(list(knobs)),rng.choice(VALUES)
    file = d/rng.choice(('broken.yaml', 'ü🙂 name.yaml', 'n'*200 + '.yaml'))
    file.write_text(json.dumps({knob: value}) if rng.random() < .5 and value == value else yaml.safe_dump({knob: value}, allow_unicode=rng.random() < .5), encoding='utf-8')
    return f'{name} {knob}={str(value)[:60]!r}',_command([name, '--preset', file], d),[knob, file.name],dict(command=True, right=lambda o: _usable(knobs[knob], value))

def _notebook(**changes):
    cell = lambda text, tags=(), kind='code': dict(cell_type=kind, source=text, metadata=dict(tags=list(tags)) if tags else {}, **(dict(outputs=[], execution_count=None) if kind == 'code' else {}))
    return dict(cells=[cell('# Title\n\n> What it does', kind='markdown'), cell("steps: int = 4 # Steps\nout: str = '' # Directory", ['parameters']), cell('print(steps)')], metadata={}, nbformat=4, nbformat_minor=5) | changes

def broken_notebook(rng, d):
    file,nb,cell = d/'mine.ipynb',_notebook(),None
    def knobs(text): nb['cells'][1]['source'] = text
    ways = dict(
        json=lambda: json.dumps(nb)[:rng.randrange(1, len(json.dumps(nb)))], text=lambda: 'not a notebook', empty=lambda: '', number=lambda: '5', null=lambda: 'null', listing=lambda: '[]', deep=lambda: '['*100_000,
        no_cells=lambda: json.dumps({'metadata': {}}), cells_text=lambda: json.dumps(dict(nb, cells='abc')), cells_null=lambda: json.dumps(dict(nb, cells=None)), cells_numbers=lambda: json.dumps(dict(nb, cells=[1, 2])),
        no_type=lambda: json.dumps(dict(nb, cells=[dict(source='x', metadata={})])), no_source=lambda: json.dumps(dict(nb, cells=[dict(cell_type='code', metadata={})])),
        no_metadata=lambda: json.dumps(dict(nb, cells=[dict(cell_type='code', source='a = 1')])), source_number=lambda: json.dumps(dict(nb, cells=[dict(cell_type='code', source=5, metadata=dict(tags=['parameters']))])),
        tags_number=lambda: json.dumps(dict(nb, cells=[dict(cell_type='code', source='a = 1', metadata=dict(tags=5))])), tags_text=lambda: json.dumps(dict(nb, cells=[dict(cell_type='code', source='a = 1', metadata=dict(tags='params'))])),
        no_parameters=lambda: json.dumps(dict(nb, cells=[nb['cells'][0], nb['cells'][2]])), other_tag=lambda: json.dumps(dict(nb, cells=[dict(nb['cells'][1], metadata=dict(tags=['parameter']))])), markdown=lambda: json.dumps(dict(nb, cells=[dict(nb['cells'][1], cell_type='markdown')])),
        syntax=lambda: (knobs('steps: int = = 4'), json.dumps(nb))[1], no_default=lambda: (knobs('steps: int'), json.dumps(nb))[1], indent=lambda: (knobs('  steps = 4\nlr = 1'), json.dumps(nb))[1], nul=lambda: (knobs('steps = 4\0'), json.dumps(nb))[1],
        star=lambda: (knobs('*a, b = 1, 2'), json.dumps(nb))[1], unclosed=lambda: (knobs('steps = (1,\n'), json.dumps(nb))[1], quote=lambda: (knobs("label = '''abc"), json.dumps(nb))[1], surrogate=lambda: (knobs('steps = "\udcff"'), json.dumps(nb))[1],
        nested=lambda: (knobs('steps = ' + '('*500 + '1' + ')'*500), json.dumps(nb))[1], huge_number=lambda: (knobs('steps = ' + '9'*6000), json.dumps(nb))[1], annotation=lambda: (knobs('steps: int[ = 4'), json.dumps(nb))[1], attribute=lambda: (knobs('a.b = 1\nc[0] = 2'), json.dumps(nb))[1],
        magic=lambda: (knobs('%matplotlib inline\nsteps = 4'), json.dumps(nb))[1], tabs=lambda: (knobs('if True:\n\tx = 1\n        y = 2'), json.dumps(nb))[1], big=lambda: json.dumps(dict(nb, cells=[dict(nb['cells'][2], source='x'*3_000_000)])),
        nan=lambda: json.dumps(dict(nb, cells=[dict(nb['cells'][1], metadata=dict(tags=[math.nan]))])), tags_null=lambda: json.dumps(dict(nb, cells=[dict(nb['cells'][1], metadata=dict(tags=None))])), metadata_list=lambda: json.dumps(dict(nb, cells=[dict(nb['cells'][1], metadata=[])])),
        source_null=lambda: json.dumps(dict(nb, cells=[dict(nb['cells'][1], source=None)])), source_mixed=lambda: json.dumps(dict(nb, cells=[dict(nb['cells'][1], source=['a = 1', 5])])), unicode=lambda: (knobs('ü = 1'), json.dumps(nb))[1], empty_cell=lambda: (knobs(''), json.dumps(nb))[1],
        keyword=lambda: (knobs('class = 1'), json.dumps(nb))[1], inf=lambda: (knobs('steps = 1e999'), json.dumps(nb))[1], two=lambda: json.dumps(dict(nb, cells=[nb['cells'][1], nb['cells'][1], nb['cells'][2]])), null_bytes=lambda: b'\0'*100, dict_cells=lambda: json.dumps(dict(nb, cells={'a': 1})),
        bytes=lambda: bytes(rng.randrange(256) for _ in range(200)), bom=lambda: b'\xff\xfe' + json.dumps(nb).encode('utf-16'), folder=lambda: None)
    way = rng.choice(list(ways))
    raw = ways[way]()
    if raw is None: file.mkdir(exist_ok=True)
    else: file.write_bytes(raw if isinstance(raw, bytes) else raw.encode('utf-8', 'surrogatepass'))
    words = [file] + rng.choice(([], ['--help'], ['steps=3'], ['--sweep', 'steps=1,2', '--part', '0']))
    return f'{way} {words[1:]}',_command(words, d),[file, 'mine.ipynb', 'steps', 'mine'],dict(command=True, right=lambda o: way in ('attribute', 'star', 'json', 'two', 'unicode', 'empty_cell', 'inf'))

# ------------------------------------------------------------------ files
_made = {}
def made(kind, folder):
    "Something whole to break, made once"
    if kind in _made: return _made[kind]
    from sae_ception.core import generator,write_json
    from sae_ception.data import load_task
    from sae_ception.models import make_model,save_model
    from sae_ception.pretraining import tokenizer_of
    from sae_ception.run import Run
    from sae_ception.sae.coders import SAE,SAEConfig,save_sae
    out = folder/f'whole-{kind}'
    if kind == 'coder':
        for i,o in enumerate((SAEConfig(width=16, k=3), SAEConfig(width=16, activation='jumprelu'), SAEConfig(width=16, activation='gated'), SAEConfig(width=16, activation='batchtopk', k=2, prefixes=(4, 16)))):
            torch.manual_seed(i)
            sae = SAE(8, o)
            if hasattr(sae, 'threshold'): sae.threshold.data.fill_(.1)
            save_sae(out/str(i), sae, site='layers.0.output')
    if kind == 'model': save_model(out, make_model('mlp:12x6', load_task('digits'), 0))
    if kind == 'run':
        run = Run(out, dict(question='how long?'))
        stage = run.stage('first')
        write_json(stage.path/'who.json', dict(name='Ada', age=36)); stage.finish()
        write_json(out/'results.json', dict(title='Both', table=[dict(a=1.)], notes=['n']))
        (out/'mine.ipynb').write_text(json.dumps(_notebook(metadata=dict(papermill=dict(parameters=dict(steps=3)), sae_ception=dict(finished=True, code=0, why='')))))
    if kind == 'lm':
        from sae_ception.huggingface import load_lm,save_lm
        tokenizer = tokenizer_of('docstrings', 300)
        save_lm(out, load_lm('gpt2:16x1', tokenizer, 0)[0], tokenizer)
    if kind == 'store':
        from sae_ception.huggingface import load_lm
        from sae_ception.store import write_store
        from sae_ception.tokens import TokenStream
        (folder/'text.txt').write_text('\n\n'.join(f'Line {i} of a text about nothing, which has a number, {i*i}, in it.' for i in range(300)))
        tokenizer = tokenizer_of(str(folder/'text.txt'), 300)
        model,_ = load_lm('gpt2:16x1', tokenizer, 0)
        write_store(out, model, TokenStream(str(folder/'text.txt'), tokenizer, 16), ['layers.0.resid_post'], 1024, 256, shard_tokens=512)
    if kind == 'training':
        from sae_ception.sae.training import SAETrainConfig
        out.mkdir()
        x = torch.randn(200, 8, generator=generator(0))
        _made['work'] = lambda file: _train(x, file)
        _interrupted(lambda: _made['work'](out/'checkpoint.safetensors'))
    _made[kind] = out
    return out

def _train(x, file):
    from sae_ception.sae.coders import SAEConfig
    from sae_ception.sae.training import SAETrainConfig,train_sae
    return train_sae(x, x[:50], SAEConfig(width=16, k=3), SAETrainConfig(epochs=4, batch_size=50), checkpoint=file)[0].state_dict()

def _interrupted(do):
    "Stop it in the middle, as a scheduler would"
    from sae_ception import run
    old,n = run.write_tensors,[0]
    def write(*a, **k):
        old(*a, **k); n[0] += 1
        if n[0] == 6: raise KeyboardInterrupt
    run.write_tensors = write
    os.environ['SAE_CEPTION_SAVE_EVERY'] = '0'
    try: do()
    except KeyboardInterrupt: pass
    finally: run.write_tensors = old; del os.environ['SAE_CEPTION_SAVE_EVERY']

def _spots(o, path=()):
    "Every place in some JSON"
    yield path
    for k,v in o.items() if isinstance(o, dict) else enumerate(o) if isinstance(o, list) else (): yield from _spots(v, path + (k,))

def break_json(rng, file):
    "Change one thing, or the file as a whole; gives what was done"
    raw = file.read_bytes()
    way = rng.choice(('cut', 'bytes', 'empty', 'kind', 'drop', 'drop', 'value', 'value', 'value'))
    if way == 'cut': file.write_bytes(raw[:rng.randrange(1, max(2, len(raw) - 1))]); return 'cut short',()
    if way == 'bytes': at = rng.randrange(len(raw)); file.write_bytes(raw[:at] + bytes([raw[at] ^ (1 << rng.randrange(8))]) + raw[at+1:]); return f'a bit of byte {at}',()
    if way == 'empty': file.write_bytes(b''); return 'emptied',()
    if way == 'kind': file.write_text(text := rng.choice(('[]', '5', 'null', '"text"', '{}', '['*100_000, 'NaN'))); return f'now {text[:10]}',()
    o = json.loads(raw)
    path = rng.choice([p for p in _spots(o) if p])
    at = o
    for k in path[:-1]: at = at[k]
    if way == 'drop': del at[path[-1]]
    else: at[path[-1]] = rng.choice((None, 5, -1, 1.5, 'x', '', [], {}, [1, 2], dict(a=1), True, 10**12, '../../x', 'nan'))
    file.write_text(json.dumps(o))
    return f'{".".join(map(str, path))} {"dropped" if way == "drop" else f"now {str(at[path[-1]])[:20]!r}"}',[str(o) for o in path]

def break_tensors(rng, file):
    "The same for a file of tensors"
    from safetensors.torch import load_file,save_file
    raw,way = file.read_bytes(),rng.choice(('cut', 'header', 'data', 'empty', 'text', 'drop', 'shape', 'nan', 'kind', 'name', 'foreign', 'length'))
    n = struct.unpack('<Q', raw[:8])[0]
    flip = lambda at: file.write_bytes(raw[:at] + bytes([raw[at] ^ (1 << rng.randrange(8))]) + raw[at+1:])
    if way == 'cut': file.write_bytes(raw[:rng.randrange(1, len(raw) - 1)])
    elif way == 'header': flip(8 + rng.randrange(n))
    elif way == 'length': flip(rng.randrange(8))
    elif way == 'data': flip(8 + n + rng.randrange(len(raw) - 8 - n))
    elif way == 'empty': file.write_bytes(b'')
    elif way == 'text': file.write_text('not tensors at all')
    else:
        t = {k: v.clone() for k,v in load_file(file).items()}
        name = rng.choice(sorted(t))
        if way == 'drop': del t[name]
        if way == 'shape': t[name] = torch.zeros(rng.choice(((3,), (2, 2), (), (0,), tuple(o + 1 for o in t[name].shape))))
        if way == 'nan': t[name] = torch.full(t[name].shape, float('nan'))
        if way == 'kind': t[name] = t[name].to(rng.choice((torch.int32, torch.bool, torch.uint8)))
        if way == 'name': t[name + 'x'] = t.pop(name)
        if way == 'foreign': t = dict(weight=torch.zeros(3, 3))
        save_file(t, file)
        return f'{way} of {name}',[name, name + 'x']
    return way,[]

def _copy(kind, folder, d):
    shutil.copytree(made(kind, folder), d/'it')
    return d/'it'

def _equal(a, b): return a.keys() == b.keys() and all(torch.equal(torch.nan_to_num(v.float(), nan=-7.), torch.nan_to_num(b[k].float(), nan=-7.)) for k,v in a.items())

def broken_coder(rng, d, folder):
    from sae_ception.sae.coders import load_sae
    it = _copy('coder', folder, d)/str(rng.randrange(4))
    whole = load_sae(it)
    file = it/rng.choice(('cfg.json', 'cfg.json', 'sae_weights.safetensors'))
    done,names = (break_json if file.suffix == '.json' else break_tensors)(rng, file)
    def right(sae): # accepted: a coder of the same shape whose numbers are all finite (no format of coders has a checksum), or other facts beside it
        state = sae.state_dict()
        return state.keys() == whole.state_dict().keys() and all(v.shape == whole.state_dict()[k].shape for k,v in state.items()) and sae.encode(torch.randn(3, 8)).isfinite().all() if file.suffix != '.json' else _sane(sae, done)
    return f'{file.name}: {done}',lambda: load_sae(it),[file.name, 'SAEConfig', *names],dict(right=right)

def _sane(sae, done): # what is not looked at may be anything; what decides the function has been checked
    with torch.no_grad(): return sae.config.width == 16 and sae.decode(sae.encode(torch.randn(3, 8))).shape == (3, 8)

def broken_model(rng, d, folder):
    from sae_ception.models import load_model
    it = _copy('model', folder, d)
    whole = load_model(it).state_dict()
    file = it/rng.choice(('config.json', 'model.safetensors'))
    done,names = (break_json if file.suffix == '.json' else break_tensors)(rng, file)
    return f'{file.name}: {done}',lambda: load_model(it),[file.name, *names],dict(right=lambda m: m.state_dict().keys() == whole.keys() and all(v.shape == whole[k].shape and v.isfinite().all() for k,v in m.state_dict().items()))

def broken_store(rng, d, folder):
    from sae_ception.store import Store
    it = _copy('store', folder, d)
    read = lambda: {k: torch.cat([o[k].float() for s in ('train', 'held_out') for o in Store(it).walk(split=s)]) for k in ('tokens', 'layers.0.resid_post')}
    rows = lambda: Store(it).in_memory().batch(64)
    whole,batch = read(),rows()
    file = it/rng.choice(['meta.json', 'meta.json', *sorted(o.name for o in it.glob('*.safetensors'))])
    done,names = (break_json if file.suffix == '.json' else break_tensors)(rng, file)
    return f'{file.name}: {done}',lambda: (read(), rows()),[file.name, *names],dict(right=lambda o: _equal(o[0], whole) and 'norms' not in done or _equal(o[1], batch))

def broken_lm(rng, d, folder):
    "A folder with a language model and its tokenizer, as they come from a hub"
    from sae_ception.huggingface import load_lm
    it = _copy('lm', folder, d)
    whole = load_lm(str(it))[0].state_dict()
    file = it/rng.choice(['config.json', 'config.json', *sorted(o.name for o in it.iterdir() if o.name != 'config.json')])
    gone = rng.random() < .15
    if gone: file.unlink()
    done,names = ('gone', []) if gone else (break_json if file.suffix == '.json' else break_tensors)(rng, file)
    def right(found): # accepted: all that decides the function is there
        state = found[0].state_dict()
        return state.keys() == whole.keys() and all(v.shape == whole[k].shape for k,v in state.items()) and (file.suffix == '.json' or done in ('data',) or 'nan' in done or 'kind' in done)
    return f'{file.name}: {done}',lambda: load_lm(str(it)),[file.name, it.name, *names],dict(right=right)

TABLES = ('csv', 'jsonl', 'parquet', 'json', 'txt')

def broken_data(rng, d):
    "A data set in a file of one's own: a task to learn, or a text to read"
    import pandas as pd
    from sae_ception.data import load_task
    from sae_ception.tokens import TokenStream
    kind,n = rng.choice(TABLES),rng.choice((0, 1, 2, 3, 40, 40, 40))
    frame = dict(text=[f'Sentence {i} about {"cats" if i % 2 else "dogs"}.' for i in range(n)], label=[i % 2 for i in range(n)])
    way = rng.choice(('whole', 'one_class', 'nan_labels', 'no_label', 'no_text', 'float_labels', 'nested', 'nulls', 'same_names', 'long_names', 'unicode', 'many_classes', 'empty_texts', 'numbers', 'cut', 'bytes', 'empty', 'folder', 'absent', 'other_kind'))
    if way == 'one_class': frame['label'] = [0]*n
    if way == 'nan_labels': frame['label'] = [math.nan]*n
    if way == 'float_labels': frame['label'] = [i*.37 for i in range(n)]
    if way == 'no_label': del frame['label']
    if way == 'no_text': del frame['text']
    if way == 'nested': frame['text'] = [[o] for o in frame['text']]
    if way == 'nulls': frame['text'] = [None]*n
    if way == 'long_names': frame = {k + 'x'*5000: v for k,v in frame.items()}
    if way == 'unicode': frame = {'ü🙂' + k: v for k,v in frame.items()}
    if way == 'many_classes': frame['label'] = [f'class {i}' for i in range(n)]
    if way == 'empty_texts': frame['text'] = ['']*n
    if way == 'numbers': frame['text'] = [rng.choice((1., -1e308, math.inf)) for _ in range(n)]
    table,file = pd.DataFrame(frame),d/f'mine.{kind}'
    if kind == 'csv': table.to_csv(file, index=False)
    if kind == 'parquet': table.to_parquet(file)
    if kind in ('jsonl', 'json'): table.to_json(file, orient='records', lines=kind == 'jsonl')
    if kind == 'txt': file.write_text('\n\n'.join(map(str, frame.get('text', []))))
    raw = file.read_bytes()
    if way == 'same_names' and kind == 'csv': file.write_text('text,text,label\na,b,0\nc,d,1\n')
    if way == 'cut': file.write_bytes(raw[:rng.randrange(len(raw) + 1)])
    if way == 'bytes': file.write_bytes(bytes(rng.randrange(256) for _ in range(300)))
    if way == 'empty': file.write_bytes(b'')
    if way == 'absent': file.unlink()
    if way == 'folder': file.unlink(); file = d/'mine'; file.mkdir(); (file/'a.txt').write_text('x')
    if way == 'other_kind': file.write_bytes(b'\x89PNG\r\n' + raw)
    column = rng.choice(('', '', '', 'label', 'nowhere'))
    if rng.random() < .5: return f'task, {kind}, {n} rows, {way}, column={column!r}',lambda: load_task(str(file), text_column=column or None).splits['train'],['mine', column or 'mine', 'text', 'label'],dict(right=lambda o: len(o) > 0)
    from sae_ception.pretraining import tokenizer_of
    tokenizer = tokenizer_of('docstrings', 300)
    return f'text, {kind}, {n} rows, {way}, column={column!r}',lambda: TokenStream(str(file), tokenizer, 16, column=column).next(2),['mine', column or 'mine', 'text', 'document'],dict(right=lambda o: o.ids.shape[1] == 16)

def broken_run(rng, d, folder):
    from sae_ception.run import Run
    it = _copy('run', folder, d)
    file = it/rng.choice(('config.json', 'first/manifest.json', 'first/who.json', 'results.json', 'mine.ipynb'))
    done,names = break_json(rng, file)
    if file.name in ('results.json', 'mine.ipynb'): # `sae_ception runs` lists what it can, and says what it cannot
        words = ['runs', it] + rng.choice(([], ['--export', d/'table.csv']))
        return f'runs, {file.name}: {done}',_command(words, d),[file.name, 'mine', 'it'],dict(command=True, right=lambda o: (d/'table.csv').unlink(missing_ok=True) is None)
    def do():
        run = Run(it, dict(question='how long?'))
        return (done := run.stage('first').done),json.loads((it/'first/who.json').read_text()) if done else None
    return f'{file.name}: {done}',do,[file.name, str(it), *names],dict(right=lambda o: not o[0] or o[1] == dict(name='Ada', age=36))

def broken_checkpoint(rng, d, folder):
    it = _copy('training', folder, d)
    file = it/'checkpoint.safetensors'
    if 'end' not in _made: _made['end'] = _made['work'](None)
    done,names = break_tensors(rng, file)
    before = file.read_bytes()
    return f'checkpoint: {done}',lambda: _made['work'](file),[file.name, *names],dict(right=lambda o: False if file.read_bytes() == before else _equal(o, _made['end']))

KINDS = dict(configuration=(broken_config, 200), setup=(broken_setup, 80), experiment=(broken_experiment, 60), command=(broken_command, 110), preset=(broken_preset, 80), value=(broken_value, 70), notebook=(broken_notebook, 90), data=(broken_data, 70), coder=(broken_coder, 80), model=(broken_model, 40),
             lm=(broken_lm, 40), store=(broken_store, 30), run=(broken_run, 40), checkpoint=(broken_checkpoint, 40))

def fuzz(folder, n=1000, seed=0, kinds=tuple(KINDS)):
    "The cases, each with how it went"
    folder = Path(folder).resolve()
    total = sum(KINDS[k][1] for k in kinds)
    for kind in kinds:
        make,share = KINDS[kind]
        for i in range(max(1, round(share*n/total))):
            rng,d = random.Random(f'{seed} {kind} {i}'),folder/f'{kind}-{i}'
            d.mkdir()
            what,do,names,more = make(rng, d) if make.__code__.co_argcount == 2 else make(rng, d, folder)
            begin = time.process_time()
            how,said = look(do, names, d, **more)
            yield dict(kind=kind, case=i, seed=seed, what=what.replace(str(folder), ''), how=how, clean=how in ('refused', 'fine'), said=said.replace(str(folder), ''), ms=round(1000*(time.process_time() - begin)))
            shutil.rmtree(d, ignore_errors=True)

def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument('out', help='file of JSON lines to append to')
    a.add_argument('--n', type=int, default=1000, help='how many cases')
    a.add_argument('--seed', type=int, default=0, help='decides what is broken, and how')
    a.add_argument('--kinds', default=','.join(KINDS))
    a = a.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (12 << 30, 12 << 30)) # what takes all memory fails, and is counted
    from sae_ception.run import versions
    with tempfile.TemporaryDirectory() as d, open(a.out, 'a') as f:
        rows = []
        for row in fuzz(d, a.n, a.seed, a.kinds.split(',')):
            rows.append(row)
            f.write(json.dumps(row) + '\n')
            if not row['clean']: print(json.dumps(row), flush=True)
        f.write(json.dumps(dict(kind='about', what='fuzz', settings=dict(n=a.n, seed=a.seed), core_seconds=round(time.process_time()), versions=versions())) + '\n')
    print(f'{len(rows)} cases, {sum(not o["clean"] for o in rows)} of them not clean')

if __name__ == '__main__': main()
