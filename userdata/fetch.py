#!/usr/bin/python3
# Fetches objects from S3 with the instance's role, by what every image with
# cloud-init has: Python's standard library. IMDSv2 only, never by a proxy.
import hashlib, hmac, json, os, platform, ssl, subprocess, sys, tempfile, time
import urllib.parse, urllib.request

IMDS = "http://169.254.169.254/latest/"
EMPTY = hashlib.sha256(b"").hexdigest()


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


def fetch(o, timeout=120):
    region = o.get("region") or imds("meta-data/placement/region").strip()
    role = imds("meta-data/iam/security-credentials/").splitlines()[0].strip()
    creds = json.loads(imds("meta-data/iam/security-credentials/" + role))
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
    body = call(scheme + "://" + host + path, headers=headers, proxy=o.get("proxy", ""), ca=o.get("ca"), timeout=timeout)
    if hashlib.sha256(body).hexdigest() != o["sha256"]:
        raise ValueError("s3://%s/%s is not what was pinned by SHA-256" % (o["bucket"], o["key"]))
    return body


def persist(o, seconds):
    """Tries until the time is over: a role's credentials may come late."""
    end, wait = time.monotonic() + seconds, 1
    while True:
        try:
            return fetch(o)
        except Exception as e:
            say("cannot fetch s3://%s/%s: %s" % (o["bucket"], o["key"], e))
            if isinstance(e, ValueError) or time.monotonic() + wait > end:
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
    """Puts the agent into the system and starts it."""
    agent = o["agents"].get(platform.machine())
    if not agent:
        say("no agent for " + platform.machine())
        return 1
    body = persist(dict(o, **agent), 1800)
    os.makedirs("/var/lib/lecafe", 0o700, exist_ok=True)
    handle, name = tempfile.mkstemp(dir="/var/lib/lecafe")
    with os.fdopen(handle, "wb") as f:
        f.write(body)
    os.chmod(name, 0o755)
    try:
        return subprocess.call([name, "install", "--root", "/", "--now"])
    finally:
        os.unlink(name)


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
        sys.exit({"install": install, "unpack": unpack}[sys.argv[1]](json.load(f)))
