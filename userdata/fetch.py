#!/usr/bin/python3
# Fetches objects from S3 with the instance's role, by what every image with
# cloud-init has: Python's standard library. IMDSv2 only, never by a proxy.
import hashlib, hmac, json, os, platform, re, signal, ssl, subprocess, sys, tempfile, time
import urllib.error, urllib.parse, urllib.request

IMDS = "http://169.254.169.254/latest/"
EMPTY = hashlib.sha256(b"").hexdigest()


class NoRole(Exception):
    """The instance has no credentials, which is its environment's fault."""


class Refused(Exception):
    """Trying again would not help."""


def call(url, method="GET", headers={}, proxy="", ca=None, timeout=10):
    handlers = [urllib.request.ProxyHandler({"http": proxy, "https": proxy} if proxy else {})]
    if url.startswith("https:"):
        handlers.append(urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=ca or None)))
    request = urllib.request.Request(url, method=method, headers=headers)
    with urllib.request.build_opener(*handlers).open(request, timeout=timeout) as answer:
        return answer.read()


def imds(path):
    token = call(IMDS + "api/token", "PUT", {"X-aws-ec2-metadata-token-ttl-seconds": "300"}).decode()
    return call(IMDS + path, headers={"X-aws-ec2-metadata-token": token}).decode()


def credentials():
    path = "meta-data/iam/security-credentials/"
    try:
        role = imds(path).splitlines()[0].strip()
        creds = json.loads(imds(path + role))
    except (urllib.error.HTTPError, IndexError) as e:
        if getattr(e, "code", 404) != 404:
            raise
        raise NoRole("the instance has no role; give it an instance profile")
    if "Token" not in creds:
        raise NoRole("the role %s gives no credentials: %s" % (role, creds.get("Code")))
    return creds


def fetch(o, timeout=120):
    region = o.get("region") or imds("meta-data/placement/region").strip()
    creds = credentials()
    path = "/" + urllib.parse.quote(o["key"], safe="/-_.~")
    if o.get("endpoint"):
        base = urllib.parse.urlsplit(o["endpoint"])
        scheme, host, path = base.scheme, base.netloc, "/" + o["bucket"] + path
    else:
        scheme, domain = "https", imds("meta-data/services/domain").strip()
        host = "s3.%s.%s" % (region, domain)
        if "." in o["bucket"]:  # no certificate is good for it as a host name
            path = "/" + o["bucket"] + path
        else:
            host = o["bucket"] + "." + host
    # https://docs.aws.amazon.com/IAM/latest/UserGuide/create-signed-request.html
    now = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    headers = {"host": host, "x-amz-content-sha256": EMPTY, "x-amz-date": now, "x-amz-security-token": creds["Token"]}
    names = sorted(headers)
    signed = ";".join(names)
    lines = ["GET", path, ""] + [n + ":" + headers[n] for n in names] + ["", signed, EMPTY]
    scope = [now[:8], region, "s3", "aws4_request"]
    text = "\n".join(["AWS4-HMAC-SHA256", now, "/".join(scope), hashlib.sha256("\n".join(lines).encode()).hexdigest()])
    key = ("AWS4" + creds["SecretAccessKey"]).encode()
    for word in scope:
        key = hmac.new(key, word.encode(), "sha256").digest()
    headers["authorization"] = "AWS4-HMAC-SHA256 Credential=%s/%s, SignedHeaders=%s, Signature=%s" % (
        creds["AccessKeyId"], "/".join(scope), signed, hmac.new(key, text.encode(), "sha256").hexdigest())
    try:
        body = call(scheme + "://" + host + path, headers=headers, proxy=o.get("proxy", ""), ca=o.get("ca"), timeout=timeout)
    except urllib.error.HTTPError as e:
        # S3 says more than the status.
        code = re.search(r"<Code>(\w+)</Code>", e.read(4096).decode(errors="replace"))
        raise OSError("S3 answered %d %s" % (e.code, code.group(1) if code else e.reason))
    if hashlib.sha256(body).hexdigest() != o["sha256"]:
        raise Refused("it is not what was pinned by SHA-256")
    return body


def persist(o, seconds, patience=1800):
    """Tries until the time is over: a role's credentials may come late. For
    a role that is not there at all it has patience seconds."""
    end, wait, said = time.monotonic() + seconds, 1, ""
    while True:
        try:
            return fetch(o)
        except Exception as e:
            if str(e) != said:
                said = str(e)
                say("cannot fetch s3://%s/%s: %s" % (o["bucket"], o["key"], said))
            left = end - time.monotonic() - wait
            if isinstance(e, Refused) or left < 0 or isinstance(e, NoRole) and left < seconds - patience:
                raise
        time.sleep(wait)
        wait = min(2 * wait, 15)


def say(message):
    print("lecafe: " + message, file=sys.stderr, flush=True)
    try:
        with open("/dev/console", "w") as console:
            console.write("lecafe: " + message + "\n")
    except OSError:
        pass


def install(o):
    """Puts the agent into the system and starts it. cloud-final waits for it,
    so that runcmd is watched too, hence the alarm: what takes longer is left
    to a unit that nobody waits for."""
    signal.signal(signal.SIGALRM, overdue)
    signal.alarm(o.get("wait", 45))
    code = late(o, o.get("wait", 45), 10)
    signal.alarm(0)
    if code and code != REFUSED:
        say("the boot goes on without lecafe-agent, which is tried for another 30 minutes")
        subprocess.call(["systemd-run", "--no-block", "--unit=lecafe-install-late", sys.executable, __file__, "late", sys.argv[2]])
    return code


def overdue(number, frame):
    raise TimeoutError("this takes too long")


REFUSED = 2


def late(o, seconds=1800, patience=1800):
    """Exits with 1 if the agent cannot be fetched or does not start, 2 if it is
    not the one that was pinned, 3 if the instance has no role."""
    try:
        agent = o["agents"].get(platform.machine())
        if not agent:
            raise Refused("there is none for " + platform.machine())
        body = persist(dict(o, **agent), seconds, patience)
        os.makedirs("/var/lib/lecafe", 0o700, exist_ok=True)
        handle, name = tempfile.mkstemp(dir="/var/lib/lecafe")
        try:
            with os.fdopen(handle, "wb") as f:
                f.write(body)
            os.chmod(name, 0o755)
            subprocess.check_call([name, "install", "--root", "/", "--now"])
        finally:
            os.unlink(name)
        return 0
    except Exception as e:
        say("lecafe-agent is not installed: %s" % e)
        return REFUSED if isinstance(e, Refused) else 3 if isinstance(e, NoRole) else 1


def unpack(o):
    """Does what cloud-init would have done with a payload of any size."""
    instance = o.get("instance", "/var/lib/cloud/instance")
    scripts = os.path.join(instance, "scripts")
    try:
        bundle = json.loads(persist(o, 300))
        for s in bundle["scripts"]:
            write(os.path.join(scripts, s["name"]), s["body"], 0o700)
        config = o.get("config", "/run/cloud-init/cloud.cfg")
        if bundle["config"]:
            import yaml  # cloud-init needs it too
            whole = {}
            if os.path.exists(config):
                with open(config) as f:
                    whole = yaml.safe_load(f) or {}
            for part in bundle["config"]:
                whole.update(yaml.safe_load(part) or {})
            write(config, yaml.safe_dump(whole), 0o600)
        for i, hook in enumerate(bundle["hooks"]):
            name = os.path.join(instance, "boothooks", "lecafe-%d" % i)
            write(name, hook, 0o700)
            subprocess.call([name])
        return 0
    except Exception as e:
        # cloud-init would only log this: a script that fails is seen.
        say("the user data in S3 cannot be used: %s" % e)
        write(os.path.join(scripts, "000-lecafe-payload"), "#!/bin/sh\necho 'lecafe: the user data in S3 could not be fetched' >&2\nexit 1\n", 0o700)
        return 1


def write(name, body, mode):
    os.makedirs(os.path.dirname(name), exist_ok=True)
    with open(name, "w") as f:
        f.write(body)
    os.chmod(name, mode)


if __name__ == "__main__":
    with open(sys.argv[2]) as f:
        sys.exit({"install": install, "late": late, "unpack": unpack}[sys.argv[1]](json.load(f)))
