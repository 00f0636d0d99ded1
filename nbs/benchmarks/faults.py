#!/usr/bin/env python3
"""Does to runs what goes wrong on real machines, and counts what came of it. Every line is one fault, as JSON.

    python faults.py kills  faults.jsonl                SIGKILL at 60 random moments: of all processes, of the kernel, of the launcher
    python faults.py stops  faults.jsonl                SIGTERM and SIGINT, ten times each
    python faults.py disks  faults.jsonl                a full disk, a directory that may not be written to, damaged checkpoints
    python faults.py others faults.jsonl                a clock that jumps, two runs in one directory, a hub that is down
    python faults.py memory faults.jsonl                memory over 20,000 steps, and over 30 cycles
    python faults.py all    faults.jsonl                all of these (about an hour of one core) and the fuzz of fuzz.py

Every run is started as a person starts it, `python -m sae_ception ...`, is disturbed, and is started again by the same command until it is done. Then its
directory must equal that of a run that nothing disturbed: the same files, byte for byte.
"""
import argparse,ctypes,errno,hashlib,json,os,random,re,resource,shutil,signal,subprocess,sys,tempfile,threading,time
from pathlib import Path

import psutil

CASES = dict(
    cycle='cycle cycles=1 epochs=6 tune_epochs=3 sae_epochs=10 width=64 sae_k=6',
    study='study seeds=0,1 arms=control,per_class cycles=1 epochs=6 tune_epochs=3 sae_epochs=10 width=64',
    lm_sae='lm_sae model_name=gpt2:32x1 layer=0 vocab_size=300 pretrain_tokens=20000 training_tokens=16384 eval_tokens=4096 buffer_tokens=4096 n_evals=4 context_size=32',
    lm_store='lm_sae model_name=gpt2:32x1 layer=0 vocab_size=300 pretrain_tokens=20000 training_tokens=16384 eval_tokens=4096 store=true n_evals=4 context_size=32',
    pretrain='pretrain model_name=gpt2:32x1 vocab_size=300 pretrain_tokens=20000 training_tokens=8192 sae_tokens=8192 eval_tokens=4096 seeds=0 arms=control,per_token '
             'width=64 sae_k=8 context_size=32 k=2',
    sae='sae epochs=20 sae_epochs=30 width=64',
    baseline='baseline epochs=40')
SAVE_EVERY = .2 # seconds between checkpoints, where 20 would be none at all in runs this short
LEFT_OUT = '`log.jsonl` (a time in every line) and the executed notebook (times, and what each attempt printed)'

# Loaded by every Python process of a run. It changes nothing; it tells where a process was when its end came (SIGUSR2, just before SIGKILL), and can end it at a chosen file operation.
WATCH = '''
import faulthandler,os,signal,sys
folder = os.environ.get('FAULTS_FOLDER')
if folder and 'ipykernel_launcher' in ' '.join(sys.orig_argv):
    stack = open(os.path.join(folder, 'stack'), 'w')
    faulthandler.register(signal.SIGUSR2, file=stack, all_threads=True)
    out,target,seen = os.environ['FAULTS_OUT'],int(os.environ.get('FAULTS_AT', 0)),0
    def end():
        global seen
        seen = -10**9
        faulthandler.dump_traceback(file=stack, all_threads=True); stack.flush()
        for pid in (os.getppid(), os.getpid()) if os.environ['FAULTS_WHOM'] == 'job' else (os.getpid(),): os.kill(pid, signal.SIGKILL)
    def hook(event, args):
        global seen
        if seen == target > 0: end() # just after
        write = event == 'os.rename' and str(args[1]).startswith(out) or event == 'open' and str(args[0]).startswith(out) and isinstance(args[1], str) and 'w' in args[1]
        if not write: return
        seen += 1
        if not target: os.write(count, b'.')
        elif seen == target and os.environ['FAULTS_WHEN'] == 'before': end()
    if target or 'FAULTS_COUNT' in os.environ:
        count = os.open(os.path.join(folder, 'count'), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        sys.addaudithook(hook)
'''

class Job:
    "A run that was started as a person starts it"
    def __init__(self, words, out, more=None, command=(), **env):
        self.out,self.folder = Path(out).resolve(),Path(tempfile.mkdtemp(prefix='faults_'))
        (self.folder/'sitecustomize.py').write_text(WATCH)
        path = os.pathsep.join([str(self.folder), *filter(None, [os.environ.get('PYTHONPATH')])])
        full = {**os.environ, 'PYTHONPATH': path, 'OMP_NUM_THREADS': '1', 'HF_HUB_OFFLINE': '1', 'SAE_CEPTION_SAVE_EVERY': str(SAVE_EVERY), 'FAULTS_FOLDER': str(self.folder),
                'FAULTS_OUT': str(self.out), 'FAULTS_WHOM': 'job', **{k: str(v) for k,v in env.items()}}
        self.log = open(self.folder/'said', 'w+')
        self.p = subprocess.Popen([*command, sys.executable, '-m', 'sae_ception', *words.split(), '--out', str(out), *(more or [])], stdout=self.log, stderr=subprocess.STDOUT,
                                  stdin=subprocess.DEVNULL, env={k: v for k,v in full.items() if v != 'None'}, start_new_session=True)
        self.begin = time.monotonic()

    def family(self):
        "All processes of the run, and the kernel among them"
        try: o = psutil.Process(self.p.pid)
        except psutil.NoSuchProcess: return [],None
        found = [o, *o.children(recursive=True)]
        def kernel(o):
            try: return 'ipykernel_launcher' in ' '.join(o.cmdline())
            except psutil.Error: return False
        return found,next((x for x in found if kernel(x)), None)

    def kill(self, whom='job'):
        "SIGKILL the run as a node failure would, or one of its processes only; says where it was"
        found,kernel = self.family()
        if kernel:
            try: kernel.send_signal(signal.SIGUSR2); time.sleep(.03)
            except psutil.Error: pass
        for o in dict(job=found, kernel=[kernel] if kernel else found, launcher=found[:1])[whom]:
            try: o.kill()
            except psutil.Error: pass
        self.p.wait()

    def wait(self, timeout=400):
        "The exit code"
        try: return self.p.wait(timeout)
        except subprocess.TimeoutExpired: self.kill(); return 'hangs'

    @property
    def said(self):
        self.log.flush()
        return (self.folder/'said').read_text()
    @property
    def stack(self): return (self.folder/'stack').read_text() if (self.folder/'stack').exists() else ''
    def close(self): self.log.close(); shutil.rmtree(self.folder, ignore_errors=True)

# Functions on the stack, and what a run does while they are
DOING = dict(write_store='writing a store', base_model='pretraining', pretrain='pretraining', finetune='model training', train_saes='SAE training', train_on='LM SAE training',
             _evaluate='evaluation', evaluate_activations='evaluation', results='evaluation', compare_arms='evaluation', intervention_sweep='evaluation', reconstruction='evaluation', held_out='evaluation',
             collect='collecting activations', collect_tokens='collecting activations', embed='figures', savefig='figures', strongest_texts='figures', strongest='figures', load_task='data', TokenStream='data',
             tokenizer_of='data', load_model='reading models', saes='SAE training', models='model training')
WRITING = 'atomic','write_tensors','write_json','save_pretrained','save_coders','finish','log','_lock','fsync'

def where(stack):
    "What the run was doing, from the functions on the stack of its main thread"
    names = re.findall(r'in (\w+)$', (stack.split('Current thread')[-1] if 'Current thread' in stack else stack.split('most recent call first')[-1]), re.M)
    if not names: return 'starting',False
    doing = next((DOING[o] for o in names if DOING.get(o)), None) or ('imports' if 'exec_module' in names or '_find_and_load' in names else 'between' if 'run_cell' in names or 'run_code' in names else 'starting')
    return doing,any(o in WRITING for o in names)

def contents(out):
    "What is compared: every file of a run, but those with times in them"
    def digest(o): return hashlib.sha256(o.read_bytes()).hexdigest()[:16]
    return {o.relative_to(out).as_posix(): digest(o) for o in sorted(Path(out).rglob('*')) if o.is_file() and o.name != 'log.jsonl' and not (o.suffix == '.ipynb' and o.parent == Path(out))}

def difference(out, reference):
    found = contents(out)
    return sorted(f'{"missing" if o not in found else "left behind" if o not in reference else "differs"}: {o}' for o in found.keys() | reference if found.get(o) != reference.get(o))

_references = {}
def undisturbed(case, folder):
    "A run that nothing disturbs: its files, when each was written, and how often something was opened or renamed"
    if case in _references: return _references[case]
    out = Path(folder)/f'{case}-undisturbed'
    shutil.rmtree(out, ignore_errors=True)
    job = Job(CASES[case], out, FAULTS_COUNT=1)
    code = job.wait()
    if code: raise SystemExit(f'{case} fails undisturbed, with {code}:\n{job.said}')
    took,begun = time.monotonic() - job.begin,(out/'config.json').stat().st_mtime
    marks = sorted((o.stat().st_mtime - begun, o.relative_to(out).as_posix()) for o in out.rglob('*') if o.is_file())
    _references[case] = dict(files=contents(out), marks=marks, took=took, operations=(job.folder/'count').stat().st_size)
    job.close()
    return _references[case]

def go_on(case, out, reference, tries=3, **env):
    "The same command until it is done; how often, the last words, and what differs from the undisturbed run"
    for attempt in range(1, tries + 1):
        job = Job(CASES[case], out, **env)
        code,said = job.wait(),job.said
        job.close()
        if code == 0: break
    return dict(attempts=attempt, code=code, differs=difference(out, reference['files']), **(dict(said=said[-600:]) if code else {}))

def at_random(rng, job, reference):
    "Wait for a random moment of the work, just after a random file, or in the first seconds of the process; tells how long after which file it is"
    if rng.random() < .1:
        time.sleep(after := rng.uniform(0, .4*reference['took']))
        return f'{after:.2f} s after its start'
    marks = reference['marks']
    if rng.random() < .5: at = rng.uniform(0, marks[-1][0] + .3); i = max(k for k,o in enumerate(marks) if o[0] <= at or not k); after = max(0, at - marks[i][0]) # any time
    else: i,after = rng.randrange(len(marks)),rng.uniform(0, .05) # just after a file was written
    while not (job.out/marks[i][1]).exists() and job.p.poll() is None: time.sleep(.002)
    time.sleep(after)
    return f'{after:.2f} s after {marks[i][1]}'

def kept(out):
    "Seconds since anything that a restart uses was written"
    names = [o for o in Path(out).rglob('*') if o.is_file() and o.suffix in ('.safetensors', '.json') and not o.name.endswith('.tmp')]
    return time.time() - max((o.stat().st_mtime for o in names), default=time.time())

def kills(folder, n=60, seed=0, cases=tuple(CASES)):
    "SIGKILL at random moments; every third at a file operation: before a file is opened or renamed, or just after"
    rng = random.Random(seed)
    for i in range(n):
        case,whom = cases[i % len(cases)],('job', 'job', 'kernel', 'launcher')[i//len(cases) % 4]
        reference,out = undisturbed(case, folder),Path(folder)/f'kill-{i}'
        for again in range(5): # a moment that came after the end is drawn again
            shutil.rmtree(out, ignore_errors=True)
            if i % 3 == 2:
                at,when,whom = rng.randint(1, reference['operations']),rng.choice(('before', 'after')),('job', 'kernel')[whom == 'kernel']
                job,moment = Job(CASES[case], out, FAULTS_AT=at, FAULTS_WHEN=when, FAULTS_WHOM=whom),f'{when} file operation {at} of {reference["operations"]}'
                code = job.wait()
            else:
                job = Job(CASES[case], out)
                moment,lost = at_random(rng, job, reference),None
                early = job.p.poll() is None
                job.kill(whom)
                code = job.p.returncode if early else 0
            lost,(doing,writing),said = kept(out),where(job.stack),job.said
            job.close()
            if code != 0: break
        if code == 0: continue
        rest = sum(o.name.endswith('.tmp') for o in out.rglob('*'))
        yield dict(fault='SIGKILL', case=case, whom=whom, moment=moment, doing=doing, writing=writing, kept_s=round(lost, 2), half_written=rest, **(dict(message=said.strip().splitlines()[-2:]) if whom == 'kernel' else {}),
                   **go_on(case, out, reference))
        shutil.rmtree(out, ignore_errors=True)

def stops(folder, n=10, seed=1, cases=tuple(CASES)):
    "SIGTERM and SIGINT at random moments: to the launcher, and to all processes as a scheduler does"
    rng = random.Random(seed)
    for i in range(2*n):
        case,name,whom = cases[i % len(cases)],('SIGTERM', 'SIGINT')[i % 2],('launcher', 'all')[i//2 % 2]
        reference,out = undisturbed(case, folder),Path(folder)/f'stop-{i}'
        for again in range(5):
            shutil.rmtree(out, ignore_errors=True)
            job = Job(CASES[case], out)
            moment = at_random(rng, job, reference)
            found,kernel = job.family()
            if kernel:
                try: kernel.send_signal(signal.SIGUSR2); time.sleep(.03)
                except psutil.Error: pass
            for o in found if whom == 'all' else found[:1]:
                try: o.send_signal(getattr(signal, name))
                except psutil.Error: pass
            begin = time.monotonic()
            code = job.wait()
            took,said,(doing,_) = time.monotonic() - begin,job.said,where(job.stack)
            job.close()
            if code != 0: break
        if code == 0: continue
        left = [o for o in found[1:] if o.is_running() and o.status() != psutil.STATUS_ZOMBIE]
        yield dict(fault=name, case=case, whom=whom, moment=moment, doing=doing, exit=code, right=code in (dict(SIGTERM=143, SIGINT=130)[name], -getattr(signal, name)), seconds=round(took, 2), processes_left=len(left),
                   told='run it again to resume' in said, **(dict(heard=said[-300:]) if 'run it again' not in said else {}), **go_on(case, out, reference))
        shutil.rmtree(out, ignore_errors=True)

def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument('what', choices=['all', *KINDS])
    a.add_argument('out', help='file of JSON lines to append to')
    a.add_argument('--n', type=int, help='how many, where there is a choice')
    a.add_argument('--seed', type=int, help='decides what is random')
    a.add_argument('--cases', help='some of ' + ','.join(CASES))
    a.add_argument('--folder', help='where to work; a temporary folder if absent')
    a = a.parse_args()
    from sae_ception.run import versions
    given = {k: v for k,v in dict(n=a.n, seed=a.seed, cases=a.cases and tuple(a.cases.split(','))).items() if v is not None}
    with tempfile.TemporaryDirectory() as d:
        folder = Path(a.folder or d)
        folder.mkdir(parents=True, exist_ok=True)
        for what in KINDS if a.what == 'all' else [a.what]:
            begin = time.process_time() + sum(os.times()[2:4])
            for row in KINDS[what](folder, **given):
                row = dict(kind=what, **row)
                print(json.dumps(row), flush=True)
                with open(a.out, 'a') as f: f.write(json.dumps(row) + '\n')
            cpu = time.process_time() + sum(os.times()[2:4]) - begin
            with open(a.out, 'a') as f: f.write(json.dumps(dict(kind='about', what=what, settings=given, core_seconds=round(cpu), versions=versions())) + '\n')

KINDS = dict(kills=kills, stops=stops)
if __name__ == '__main__': main()
