#!/usr/bin/env python3
"""A sweep that is disturbed at random while it runs, by Slurm and on local cores, and submitted again by the same command until it is done. Every line is one event, as JSON.

    python sweep.py slurm-cycle  sweep.jsonl --n 12     cells of one process, in scratch
    python sweep.py slurm-lm_sae sweep.jsonl --n 12     cells of two processes, started by srun, in scratch
    python sweep.py jobs-cycle   sweep.jsonl --n 8      the first sweep by --jobs 2
    python sweep.py jobs-lm_sae  sweep.jsonl --n 8      the second one, in one process a cell

It needs the daemons of Slurm (Debian: slurm-wlm and munge), and starts one node of its own by .ci/slurm. The parameters are none that a test uses. At the end each cell is held against
the same sweep that nothing disturbed: its files, byte for byte, and the steps of its training, which are counted.
"""
import argparse,contextlib,io,json,os,random,re,shlex,shutil,signal,subprocess,sys,tempfile,time
from collections import defaultdict
from pathlib import Path

import psutil

import faults

SWEEPS = dict(cycle='cycle model=mlp:48x24 cycles=1 epochs=45 tune_epochs=18 sae_epochs=80 width=96 sae_k=5 seed=3 sharpening=discriminative,per_example,per_class --sweep',
              lm_sae='lm_sae model_name=llama:48x2 layer=0 vocab_size=500 pretrain_tokens=40000 training_tokens=40000 eval_tokens=4096 buffer_tokens=8192 n_evals=4 context_size=48 '
                     'seed=5 architecture=batchtopk,relu --sweep')
HOW = {'slurm-cycle': '--slurm time=1h width=2 scratch=$SWEEP_SCRATCH', 'slurm-lm_sae': '--slurm time=1h width=2 processes=2 scratch=$SWEEP_SCRATCH', 'jobs-cycle': '--jobs 2', 'jobs-lm_sae': '--jobs 2'}

HOST = os.uname().nodename.partition('.')[0]

# Loaded by every Python process of a run. It changes nothing; it notes each step, save, load and finished stage
WATCH = '''
import importlib.util,os,sys,time
class Finder:
    def find_spec(self, name, path, target=None):
        if name != 'sae_ception.run': return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        run = spec.loader.exec_module
        def exec_module(module): run(module); watch(module)
        spec.loader.exec_module = exec_module
        return spec
def watch(m):
    fd = os.open(f"{os.environ['SWEEP_TRACE']}/{time.time_ns()}-{os.getpid()}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    def stamp(path): return path.stat().st_mtime_ns if path and path.exists() else 0
    def tell(event, path, at=0): os.environ.get('RANK', '0') == '0' and path and os.write(fd, f'{time.time():.3f}\\t{event}\\t{path}\\t{at}\\n'.encode())
    call,save,load,finish = m.Checkpoint.__call__,m.Checkpoint._save,m.Checkpoint.load,m.Stage._finish
    def __call__(self, *args, **kwargs): tell('step', self.path); return call(self, *args, **kwargs)
    def _save(self, *args): save(self, *args); tell('save', self.path, stamp(self.path))
    def _load(self, *args, **kwargs):
        found = load(self, *args, **kwargs)
        tell('load', self.path, stamp(self.path) if found else 0)
        return found
    def _finish(self, *args): finish(self, *args); tell('finish', self.path)
    m.Checkpoint.__call__,m.Checkpoint._save,m.Checkpoint.load,m.Stage._finish = __call__,_save,_load,_finish
if os.environ.get('SWEEP_TRACE') and 'ipykernel_launcher' in ' '.join(sys.orig_argv): sys.meta_path.insert(0, Finder())
'''

def ask(*words, **kwargs): return subprocess.run(words, capture_output=True, text=True, **kwargs)

class Desk:
    "A place to work in, with what is needed to watch"
    def __init__(self, folder):
        self.path,self.trace = Path(folder).resolve(),None
        (self.path/'site').mkdir(parents=True, exist_ok=True)
        (self.path/'site/sitecustomize.py').write_text(WATCH)
        path = os.pathsep.join([str(self.path/'site'), *filter(None, [os.environ.get('PYTHONPATH')])])
        os.environ |= dict(PYTHONPATH=path, OMP_NUM_THREADS='1', HF_HUB_OFFLINE='1', SAE_CEPTION_SAVE_EVERY=str(faults.SAVE_EVERY), SWEEP_SCRATCH=str(self.path/'scratch'))
        os.environ |= dict(PYDEVD_DISABLE_FILE_VALIDATION='1', MPLBACKEND='agg')

    def begin(self, kind, name):
        "Words of the command, and the directory of the sweep"
        self.trace = self.path/f'trace-{name}'
        self.trace.mkdir(exist_ok=True)
        os.environ |= dict(SWEEP_TRACE=str(self.trace), SWEEP_CELLS=str(self.path/'runs'/name))
        return f"-m sae_ception {SWEEPS[kind.partition('-')[2]]} --out runs/{name} {os.path.expandvars(HOW[kind])}".split(),self.path/'runs'/name

    def start(self, words, shell=False):
        "As a person starts it, in a session of its own; from a shell that stays open"
        self.log = open(self.path/'said', 'w')
        command = [sys.executable, *words]
        return subprocess.Popen(['bash', '-c', f'{shlex.join(command)}; sleep 600'] if shell else command, cwd=self.path, stdout=self.log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True)
    @property
    def said(self): return (self.path/'said').read_text()

    def node(self, what):
        "Slurm's own daemon on the machine: `up` or `KILL`, or `TERM`"
        box = self.path/'box'
        if what == 'up': subprocess.run(['slurmd', '-f', box/'slurm.conf', '-N', HOST], check=True)
        else:
            with contextlib.suppress(OSError, ValueError): os.kill(pid := int((box/'slurmd.pid').read_text()), getattr(signal, f'SIG{what}'))
            until(lambda: not psutil.pid_exists(pid), 30)

def until(ready, patience=240, pause=.5):
    "Wait, but not for ever"
    end = time.monotonic() + patience
    while not (found := ready()):
        if time.monotonic() > end: return found
        time.sleep(pause)
    return found

# ------------------------------------------------------------------ what there is
def states(out):
    "Run -> state and reason, as `sae_ception runs` has them"
    from sae_ception.runs import find_runs
    return {o.path.name: (o.state, o.why) for o in find_runs(out)} if out.is_dir() else {}

def processes(out, name):
    "The processes of a cell: role -> process"
    found,cells = defaultdict(list),names(out)
    for o in psutil.process_iter():
        try: words,env = ' '.join(o.cmdline()),o.environ()
        except (psutil.Error, OSError): continue
        task = env.get('SLURM_ARRAY_TASK_ID')
        if task is None: here = any(str(out/name) in (*command(p), '') for p in (o, *parents(o)))
        else: here = env.get('SWEEP_CELLS') == str(out) and cells.get(int(task)) == name
        if not here: continue
        rank = env.get('SLURM_PROCID', '0')
        if 'ipykernel_launcher' in words: found[f'kernel {rank}'].append(o)
        elif o.name() == 'srun': found['srun'].append(o)
        elif '-m sae_ception' in words and 'srun' not in words: found[f'launcher {rank}'].append(o)
    return {k: min(v, key=lambda o: o.create_time()) for k,v in found.items()}

def command(o):
    try: return o.cmdline()
    except psutil.Error: return []

def parents(o):
    try: return o.parents()[:1]
    except psutil.Error: return []

def names(out):
    "Of all cells, by their number"
    return {int(k): v for o in sorted(out.glob('slurm/*/submission.json')) for k,v in json.loads(o.read_text())['parts'].items()} if (out/'slurm').exists() else {}

def jobs(out, name):
    "Of a cell, in Slurm: number, state and how often it began again"
    from sae_ception.slurm import part_states
    job = part_states(out).get(name, {}).get('job', '')
    text = ask('scontrol', 'show', 'job', '-o', job).stdout if job else ''
    facts = dict(re.findall(r'(\w+)=(\S*)', text))
    return job,facts.get('JobState', ''),int(facts.get('Restarts', 0))

# ------------------------------------------------------------------ disturbances: what is done, and which state and reason it leads to
GONE,NOTHING = dict(killed='its process is gone without a word'),dict(failed='Slurm: failed, .*; it left nothing') # or it was so soon that nothing was written yet
KERNEL = 'its kernel was ended by SIGKILL|Kernel died'
def kill(role):
    def act(desk, out, name, parts): parts[role].kill()
    return act
def by(*words):
    def act(desk, out, name, parts): ask(*(o.format(job=jobs(out, name)[0]) for o in words))
    return act
def limit(desk, out, name, parts): # Slurm itself says that the time is nearly over: at most a minute later
    ask('scontrol', 'update', f'JobId={jobs(out, name)[0]}', 'TimeLimit=2')
def daemon(how):
    def act(desk, out, name, parts): desk.node(how); time.sleep(2); desk.node('up')
    return act
def node(desk, out, name, parts): # the machine is gone, and comes back: all of its processes have vanished
    desk.node('KILL')
    ours = [o for o in psutil.process_iter() if belongs(o, out)]
    above = {p.pid: p for o in ours for p in parents(o) if p.name() == 'slurmstepd'} # they would tell Slurm how the jobs ended
    for o in [*above.values(), *ours]:
        with contextlib.suppress(psutil.Error): o.kill()
    ask('scontrol', 'update', f'NodeName={HOST}', 'State=DOWN', 'Reason=lost') # what Slurm finds by itself after SlurmdTimeout
    desk.node('up')
    ask('scontrol', 'update', f'NodeName={HOST}', 'State=RESUME')

def belongs(o, out):
    try: return (env := o.environ()).get('SWEEP_CELLS') == str(out) and 'SLURM_JOB_ID' in env
    except (psutil.Error, OSError): return False

AGAIN = {'waiting': '', 'running': ''} # Slurm queues it again by itself
CELLS = {'slurm-cycle': {
    'SIGKILL kernel': (kill('kernel 0'), dict(failed=KERNEL)),
    'SIGKILL launcher': (kill('launcher 0'), GONE | NOTHING),
    'scancel': (by('scancel', '{job}'), dict(cancelled='Slurm: cancelled')),
    'scontrol requeue': (by('scontrol', 'requeue', '{job}'), AGAIN),
    'SIGUSR1 by scancel': (by('scancel', '--batch', '--signal=USR1', '{job}'), AGAIN),
    'time limit': (limit, AGAIN),
    'SIGTERM to slurmd': (daemon('TERM'), dict(running='')),
    'SIGKILL to slurmd': (daemon('KILL'), dict(running='')),
    'machine lost': (node, AGAIN)}}
CELLS['slurm-lm_sae'] = {**CELLS['slurm-cycle'],
    'SIGKILL kernel': (kill('kernel 0'), dict(failed=f'process 0 of 2 failed: ({KERNEL})')),
    'SIGKILL kernel of rank 1': (kill('kernel 1'), dict(failed=f'process 1 of 2 failed: ({KERNEL})')),
    'SIGKILL launcher of rank 1': (kill('launcher 1'), dict(failed='process 1 of 2 (is gone: its launcher|has not come to an end)')),
    'SIGKILL srun': (kill('srun'), GONE | dict(stopped='stopped by SIG', failed='process|it left nothing'))}
CELLS['jobs-cycle'] = CELLS['jobs-lm_sae'] = {k: v for k,v in CELLS['slurm-cycle'].items() if k in ('SIGKILL kernel', 'SIGKILL launcher')} | {
    'SIGTERM launcher': (lambda desk, out, name, parts: parts['launcher 0'].terminate(), dict(stopped='stopped by SIGTERM'))}

SHELL = ['SIGKILL submitting shell, soon', 'SIGKILL submitting shell, while it sends', 'SIGKILL submitting shell, afterwards']

class Deck:
    "Draws one after the other at random, and all of them before one comes again"
    def __init__(self, rng, cards): self.rng,self.cards,self.left = rng,[*cards],[]
    def draw(self, fits=lambda card: True):
        if not any(map(fits, self.left)): self.left += self.rng.sample(self.cards, len(self.cards))
        card = next(filter(fits, self.left), None)
        if card: self.left.remove(card)
        return card

# ------------------------------------------------------------------ the end
def counted(trace, out):
    "Training loop -> how many steps it took in all, at which step it began each time and was saved last, and stages that were finished"
    loops,done = {},defaultdict(int)
    for file in sorted(trace.iterdir()):
        for line in file.read_text().splitlines():
            when,event,path,stamp = line.split('\t')
            key = path[path.rindex(out.name) + len(out.name) + 1:]
            if event == 'finish': done[key] += 1; continue
            o = loops.setdefault(key, dict(at=0, steps=0, saves={}, last=0, saved_at=0., begun=[], lost=[], seconds=[]))
            if event == 'load':
                known = o['saves'].get(stamp, o['at']) if stamp != '0' else 0 # killed between the save and our note of it
                if o['at']: o['lost'].append(o['at'] - known); o['behind'] = o.get('behind', 0) + max(0, o['last'] - known)
                o['begun'].append(known); o['at'] = known
            elif event == 'step': o['at'] += 1; o['steps'] += 1
            elif event == 'save': o['saves'][stamp] = o['last'] = o['at']
    return loops,dict(done)

def contents(out):
    "What is compared of a sweep: files of its cells, as in `faults`"
    found = {f'{o.name}/{k}': v for o in sorted(out.iterdir()) if o.is_dir() and o.name != 'slurm' for k,v in faults.contents(o).items()}
    return {k: v for k,v in found.items() if '/processes/' not in k and not k.endswith('/launch.log')}

def held(out, trace, reference, quiet, scratch):
    "The end against that of the undisturbed sweep"
    found,expected = contents(out),contents(reference)
    (loops,done),(alone,_) = counted(trace, out),counted(quiet, reference)
    return dict(cells=len(states(out)), done=sum(s == 'done' for s,_ in states(out).values()),
                differs=sorted(o for o in found.keys() | expected if found.get(o) != expected.get(o)),
                loops=len(alone), complete=sum(k in loops and loops[k]['at'] == o['at'] for k,o in alone.items()), # each ends at the same step
                steps=sum(o['steps'] for o in alone.values()), twice=sum(o['steps'] - alone[k]['steps'] for k,o in loops.items() if k in alone),
                begun_again=sum(len(o['lost']) for o in loops.values()), behind_the_last_save=sum(o.get('behind', 0) for o in loops.values()),
                stages=len(done), stages_twice=sorted(k for k,n in done.items() if n > 1), left=sum(o.name.endswith('.tmp') for o in out.rglob('*')),
                **(dict(left_in_scratch=sum(o.is_file() for o in Path(os.environ['SWEEP_SCRATCH']).glob('runs/*/*'))) if scratch else {}))

# ------------------------------------------------------------------ one sweep
def live(out): return [k for k,(state,_) in states(out).items() if state in ('running', 'waiting')]

def doubled(out):
    "Cells that two jobs in Slurm's queue are for"
    rows = [o.split() for o in ask('squeue', '-h', '-r', '-t', 'PD,R,CG', '-o', '%K %o').stdout.splitlines()]
    tasks = [k for k,script in rows if str(out) in script and 'report' not in script]
    return sorted({k for k in tasks if tasks.count(k) > 1})

def settle(out, name, expected, before, slurm):
    "Wait for what must come; what was seen in between"
    seen = []
    def look():
        state,why = states(out).get(name, ('', ''))
        if (state, why) not in seen: seen.append((state, why))
        if expected is AGAIN and jobs(out, name)[2] == before and state != 'done': return False
        return any(state == k and re.search(v, why) for k,v in expected.items()) or state == 'done'
    ok = until(look, 240)
    return bool(ok),seen

def disturb(desk, kind, out, rng, deck):
    "One disturbance of one cell that is at work, at a random moment; nothing if it came too late"
    running = [k for k,(state,_) in states(out).items() if state == 'running']
    if not running: return None
    name = rng.choice(running)
    if not until(lambda: 'kernel 0' in processes(out, name), 30): return None
    if rng.random() < .75: # in the middle of its work, and not while it starts
        begun = processes(out, name)
        if 'kernel 0' not in begun: return None
        since = begun['kernel 0'].create_time()
        until(lambda: at_work(desk, out, name) > since or states(out)[name][0] != 'running', 120)
    time.sleep(rng.uniform(0, 10))
    if not (what := deck.draw(lambda o: o not in SHELL)): return None
    act,expected = CELLS[kind][what]
    parts,before = processes(out, name),jobs(out, name)[2] if 'slurm' in kind else 0
    role = dict(launcher='launcher 0', kernel='kernel 0', srun='srun').get(what.split()[-1], 'kernel 0') if 'rank 1' not in what else f"{what.split()[1]} 1"
    if states(out)[name][0] != 'running' or role not in parts: deck.left.append(what); return None
    at = doing(desk, out, name)
    act(desk, out, name, parts)
    right,seen = settle(out, name, expected, before, 'slurm' in kind)
    if seen[-1][0] == 'done' and 'done' not in expected: return None if seen[0][0] == 'done' else dict(fault=what, cell=name, at=at, right=expected is AGAIN or 'running' in expected, seen=seen)
    stray = [o for o in seen if o[0] not in (*expected, 'running', 'waiting')]
    return dict(fault=what, cell=name, at=at, right=right and not stray, seen=seen)

def lines(desk, out, name):
    "What is known of its training loops, the last line last"
    return sorted(o for f in desk.trace.iterdir() for o in f.read_text().splitlines() if f'{out.name}/{name}/' in o or f'{out.name}-{name}/' in o)

def at_work(desk, out, name): return float(found[-1].split('\t')[0]) if (found := lines(desk, out, name)) else 0.

def doing(desk, out, name):
    "Which loop the cell was in, or had been in last"
    found = lines(desk, out, name)
    return found[-1].split('\t')[2].rpartition(name)[2].strip('/') if found else 'before the first loop'

def close(desk, out, p, what, rng):
    "The submitting shell is gone: what Slurm has, and what is told of it; nothing if it came too late"
    sent = lambda: {*out.glob('slurm/[0-9]*')} if (out/'slurm').exists() else set()
    old,before = sent(),states(out)
    over = lambda: p.poll() is not None or 'tells how they are' in desk.said
    if what == SHELL[0]: time.sleep(rng.uniform(.5, 4))
    else: until(lambda: over() if what == SHELL[2] else over() or sent() - old, 60, .02)
    if what == SHELL[1]: time.sleep(rng.uniform(0, .15))
    early = not over()
    with contextlib.suppress(ProcessLookupError): os.killpg(p.pid, signal.SIGKILL)
    p.wait()
    if early != (what != SHELL[2]): return None
    time.sleep(2) # what was being sent arrives
    rows = [o.split() for o in ask('squeue', '-h', '-r', '-t', 'PD,R', '-o', '%K %o').stdout.splitlines()]
    at = {int(k) for k,script in rows if str(out) in script and 'report' not in script}
    told = states(out)
    right = all(told.get(name, ('',))[0] in ('waiting', 'running') for k,name in names(out).items() if k in at) and (not at or len(names(out)) >= len(at))
    right = right and all(told[k] == v or told[k][0] in ('waiting', 'running', 'done') for k,v in before.items()) # and nothing that was known is told otherwise
    return dict(fault=what, folder=len(sent() - old), sent=len(at), report=any('report' in o for _,o in rows), seen=sorted(told.items()), right=right)

def quiet_sweep(desk, kind):
    "The sweep that nothing disturbs; made once in a folder"
    name = f'undisturbed-{kind}'
    words,out = desk.begin(kind, name)
    if (out/'sweep.json').exists(): return out,desk.trace
    code = desk.start(words).wait()
    if 'slurm' in kind: until(lambda: not live(out) and (out/'sweep.json').exists(), 1200)
    if code or not all(s == 'done' for s,_ in states(out).values()): raise SystemExit(f'{kind} fails undisturbed: {states(out)}\n{desk.said}')
    return out,desk.trace

def disturbed(desk, kind, n, seed, minutes, only=None):
    "Sweeps until there were `n` disturbances, or no more time to begin one"
    rng,slurm,count,i = random.Random(f'{kind} {seed}'),'slurm' in kind,0,0
    deck = Deck(rng, [o for o in [*CELLS[kind], *(SHELL if slurm else ())] if not only or any(k in o for k in only)])
    reference,quiet = quiet_sweep(desk, 'jobs-cycle' if kind == 'slurm-cycle' else kind)
    enough,end = lambda: count >= n or time.monotonic() > end,time.monotonic() + 60*minutes
    while not enough():
        words,out = desk.begin(kind, f'{kind}-{seed}-{i}')
        given,here,i = 0,0,i + 1 # how often the command was given
        while not (states(out) and len(states(out)) == len(states(reference)) and all(s == 'done' for s,_ in states(out).values())) and given < 15:
            whole = not enough() and (rng.random() < .4 or {*deck.cards} <= {*SHELL})
            what = deck.draw(lambda o: o in SHELL) if slurm and whole else None
            given,p = given + 1,desk.start(words, shell=what == SHELL[2])
            if slurm:
                if what and (row := close(desk, out, p, what, rng)): count += 1; yield row
                code = p.wait()
                if what: code = 0 # of a shell that was killed; what it has sent goes on
                if code == 2 and 'is still at' in desk.said: given -= 1; until(lambda: not live(out), 600); continue
                if code: yield dict(fault='none', right=False, code=code, said=desk.said[-600:])
                if twice := doubled(out): yield dict(fault='none', right=False, doubled=twice)
            while live(out) if slurm else p.poll() is None:
                if not slurm and whole and rng.random() < .3:
                    time.sleep(rng.uniform(0, 15))
                    if p.poll() is not None: break
                    how,whole = rng.choice(['SIGKILL', 'SIGTERM', 'SIGINT', 'SIGHUP']),False
                    (os.killpg if how == 'SIGHUP' else os.kill)(p.pid, getattr(signal, how))
                    begin = time.monotonic()
                    p.wait(); over = until(lambda: not live(out), 60)
                    count += 1
                    yield dict(fault=f'{how} to the parent', right=bool(over), seconds=round(time.monotonic() - begin, 1), exit=p.returncode, seen=sorted(states(out).items()), said=desk.said[-200:])
                elif not enough() and here < 8 and (row := disturb(desk, kind, out, rng, deck)):
                    count,here = count + 1,here + 1
                    yield row
                else: time.sleep(1)
        if slurm: until(lambda: not ask('squeue', '-h', '-t', 'PD,R,CG').stdout.strip(), 200)
        shown = ask(sys.executable, '-m', 'sae_ception', 'runs', f'runs/{out.name}', cwd=desk.path)
        yield dict(fault='end', given=given, disturbed=count, shown=(shown.stdout + shown.stderr)[-1500:], **held(out, desk.trace, reference, quiet, 'scratch' in HOW[kind]))

def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument('what', choices=[*HOW])
    a.add_argument('out', help='file of JSON lines to append to')
    a.add_argument('--n', type=int, default=10, help='how many disturbances, at least')
    a.add_argument('--minutes', type=float, default=60, help='after which none is begun')
    a.add_argument('--seed', type=int, default=0, help='decides what is random')
    a.add_argument('--only', type=lambda o: o.split(','), help='draw only what has one of these words in its name')
    a.add_argument('--folder', help='where to work; a temporary folder if absent. The undisturbed sweep is kept there')
    a = a.parse_args()
    with tempfile.TemporaryDirectory() as d:
        desk = Desk(a.folder or d)
        starter = Path(__file__).resolve().parents[2]/'.ci/slurm'
        os.environ['SLURM_CONF'] = str(desk.path/'box/slurm.conf')
        if 'slurm' in a.what: subprocess.run([starter, 'up', desk.path/'box'], check=True)
        try:
            from sae_ception.run import versions
            for row in disturbed(desk, a.what, a.n, a.seed, a.minutes, a.only):
                row = dict(sweep=a.what, seed=a.seed, **row)
                text = json.dumps(row).replace(str(desk.path), '/desk').replace(HOST, 'here')
                print(text, flush=True)
                with open(a.out, 'a') as f: f.write(text + '\n')
            with open(a.out, 'a') as f: f.write(json.dumps(dict(sweep=a.what, seed=a.seed, fault='about', versions=versions())) + '\n')
        finally:
            if 'slurm' in a.what: subprocess.run([starter, 'down', desk.path/'box'])

if __name__ == '__main__': main()
