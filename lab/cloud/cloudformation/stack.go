package cloudformation

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/lecafe/lecafe/lab/cloud/query"
	"github.com/lecafe/lecafe/lab/cloud/wire"
)

type stack struct {
	name, id, region, host string
	created                time.Time
	status, reason         string
	body                   string // of the template
	template               *document
	values                 map[string]string
	resources              map[string]*resource
	order                  []string // as they were made
	outputs                []outputView
	events                 []event // the newest last
	drift                  map[string]detection
}

type resource struct {
	kind, status string
	made
	properties properties
	retain     bool
	expected   map[string]string // as it was observed once it was made
	changed    time.Time
}

type event struct {
	id, logical, physical, kind, status, reason string
	at                                          time.Time
}

type changeSet struct {
	id, name, kind string
	stack          *stack
	created        time.Time
	status, reason string
	template       *document
	body           string
	values         map[string]string
	changes        []changeView
	imports        bool
	onFailure      string
}

// note adds an event. The lock is held.
func (s *Server) note(st *stack, logical, status, reason string) {
	e := event{id: query.RequestID(), logical: logical, status: status, reason: reason, at: s.opts.Clock.Now()}
	if logical == st.name {
		st.status, st.reason = status, reason
		e.physical, e.kind = st.id, "AWS::CloudFormation::Stack"
	} else if r := st.resources[logical]; r != nil {
		r.status, r.changed = status, e.at
		e.physical, e.kind = r.id, r.kind
	}
	st.events = append(st.events, e)
}

// say is note for whoever does not hold the lock.
func (s *Server) say(st *stack, logical, status, reason string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.note(st, logical, status, reason)
}

func pseudo(st *stack) map[string]string {
	return map[string]string{
		"AWS::Partition": "aws", "AWS::Region": st.region, "AWS::AccountId": wire.Account, "AWS::StackName": st.name, "AWS::StackId": st.id, "AWS::URLSuffix": "amazonaws.com",
	}
}

// real is the scope of a stack's resources as they are.
func real(st *stack, d *document, values map[string]string) *scope {
	return &scope{document: d, values: values, pseudo: pseudo(st),
		ref: func(name string) (string, bool) {
			r := st.resources[name]
			if r == nil {
				return "", false
			}
			return r.id, true
		},
		attribute: func(name, attribute string) (string, bool) {
			r := st.resources[name]
			if r == nil {
				return "", false
			}
			v, ok := r.attributes[attribute]
			return v, ok
		},
	}
}

// planned is the scope in which resources are their names.
func planned(st *stack, d *document, values map[string]string) *scope {
	return &scope{document: d, values: values, pseudo: pseudo(st),
		ref:       func(name string) (string, bool) { return "{" + name + "}", true },
		attribute: func(name, attribute string) (string, bool) { return "{" + name + "." + attribute + "}", true },
	}
}

// declared evaluates the properties of a resource; false for one whose
// condition does not hold.
func (s *scope) properties(name string) (properties, bool, error) {
	r := s.resources[name]
	ok, err := s.holds(r.condition)
	if err != nil || !ok {
		return nil, false, err
	}
	v, err := s.eval(r.properties)
	if err != nil {
		return nil, false, err
	}
	p := sub(v)
	if p == nil {
		p = properties{}
	}
	return p, true, nil
}

func same(a, b any) bool { return jsonOf(a) == jsonOf(b) }

// differing names the top-level properties that are not the same.
func differing(old, p properties) []string {
	all := maps.Clone(old)
	maps.Copy(all, p)
	var out []string
	for _, key := range slices.Sorted(maps.Keys(all)) {
		if !same(old[key], p[key]) {
			out = append(out, key)
		}
	}
	return out
}

// replaces says whether a change of properties takes another resource.
func replaces(kind string, changed []string) bool {
	fixed := kinds[kind].fixed
	return len(changed) > 0 && (slices.Contains(fixed, "*") || slices.ContainsFunc(changed, func(p string) bool { return slices.Contains(fixed, p) }))
}

// plan compares what a stack is with what it is to be. The lock is held.
func (s *Server) plan(c *changeSet) error {
	st := c.stack
	next := planned(st, c.template, c.values)
	var before *scope
	if st.template != nil {
		before = planned(st, st.template, st.values)
	}
	touched := map[string]bool{}
	w := s.as(s.ctx, st)
	for _, name := range c.template.order {
		p, wanted, err := next.properties(name)
		if err != nil {
			return err
		}
		r, kind := st.resources[name], c.template.resources[name].kind
		switch {
		case !wanted:
			continue
		case r == nil:
			v := changeView{Action: "Add", LogicalID: name, Type: kind}
			if own := text(p[kinds[kind].named]); c.imports && c.template.resources[name].retain && own != "" {
				if id, ok := exists(w, kind, own); ok {
					v.Action, v.PhysicalID = "Import", id
				}
			}
			c.changes = append(c.changes, v)
			touched[name] = true
			continue
		}
		var old properties
		if before != nil {
			if _, ok := st.template.resources[name]; ok {
				if old, _, err = before.properties(name); err != nil {
					return err
				}
			}
		}
		changed := differing(old, p)
		// What another change may reach by an attribute.
		for _, need := range c.template.resources[name].needs {
			if touched[need] && kinds[st.kindOf(need)].named == "" && strings.Contains(jsonOf(p), "{"+need+".Latest") {
				changed = append(changed, dependent(p, need)...)
			}
		}
		if len(changed) == 0 {
			continue
		}
		slices.Sort(changed)
		v := changeView{Action: "Modify", LogicalID: name, Type: kind, PhysicalID: r.id, Replacement: "False", Scope: []string{"Properties"}}
		if replaces(kind, changed) {
			v.Replacement = "True"
		}
		for _, property := range slices.Compact(changed) {
			v.Details = append(v.Details, detailView{Target: targetView{"Properties", property}})
		}
		c.changes = append(c.changes, v)
		touched[name] = true
	}
	for _, name := range slices.Backward(st.order) {
		_, declared := c.template.resources[name]
		wanted := false
		if declared {
			var err error
			if wanted, err = next.holds(c.template.resources[name].condition); err != nil {
				return err
			}
		}
		if r := st.resources[name]; r != nil && !wanted {
			c.changes = append(c.changes, changeView{Action: "Remove", LogicalID: name, Type: r.kind, PhysicalID: r.id})
		}
	}
	return nil
}

func (st *stack) kindOf(name string) string {
	if r := st.resources[name]; r != nil {
		return r.kind
	}
	return ""
}

// dependent names the properties that have an attribute of another resource.
func dependent(p properties, need string) []string {
	var out []string
	for key, v := range p {
		if strings.Contains(jsonOf(v), "{"+need+".") {
			out = append(out, key)
		}
	}
	return out
}

// exists finds what may be taken over by its name.
func exists(w *world, kind, name string) (id string, ok bool) {
	switch kind {
	case "AWS::S3::Bucket":
		_, err := observeBucket(w, name)
		return name, err == nil
	case "AWS::SQS::Queue":
		out, err := w.sqs("GetQueueUrl", map[string]any{"QueueName": name})
		return text(out["QueueUrl"]), err == nil
	}
	return "", false
}

// failure is a resource that could not be handled.
type failure struct {
	logical string
	err     error
}

func (f *failure) Error() string { return f.logical + ": " + reason(f.err) }

func reason(err error) string {
	if e, ok := err.(*query.Error); ok { //nolint:errorlint // made by this package
		return fmt.Sprintf("%s (Service error code: %s; Status Code: %d)", e.Message, e.Code, e.Status)
	}
	return err.Error()
}

// apply makes a stack's resources what a template says. It does the work
// without the lock; nobody else touches a stack that is in progress.
func (s *Server) apply(w *world, st *stack, d *document, values map[string]string, imports bool) error {
	sc := real(st, d, values)
	keep := map[string]bool{}
	for _, name := range d.order {
		p, wanted, err := sc.properties(name)
		if err != nil {
			return &failure{name, err}
		}
		if !wanted {
			continue
		}
		keep[name] = true
		if err := s.make(w, st, name, d.resources[name], p, imports); err != nil {
			s.say(st, name, map[bool]string{true: "UPDATE_FAILED", false: "CREATE_FAILED"}[st.resources[name] != nil && st.resources[name].expected != nil], reason(err))
			return &failure{name, err}
		}
	}
	for _, name := range slices.Backward(slices.Clone(st.order)) {
		if !keep[name] {
			if err := s.unmake(w, st, name, true); err != nil {
				return &failure{name, err}
			}
		}
	}
	return nil
}

// make creates, takes over, updates or replaces one resource.
func (s *Server) make(w *world, st *stack, name string, d declared, p properties, imports bool) error {
	k, r := kinds[d.kind], st.resources[name]
	generated := strings.ToLower(st.name + "-" + name + "-" + st.id[len(st.id)-8:])
	if r == nil {
		r = &resource{kind: d.kind, retain: d.retain, properties: properties{}}
		s.mu.Lock()
		st.resources[name], st.order = r, append(st.order, name)
		s.mu.Unlock()
		if own := text(p[k.named]); imports && d.retain && own != "" {
			if id, ok := exists(w, d.kind, own); ok {
				s.say(st, name, "IMPORT_IN_PROGRESS", "")
				m, err := k.update(w, id, properties{}, p)
				return s.settle(w, st, name, m, p, "IMPORT_COMPLETE", err)
			}
		}
		s.say(st, name, "CREATE_IN_PROGRESS", "")
		m, err := k.create(w, generated, p)
		return s.settle(w, st, name, m, p, "CREATE_COMPLETE", err)
	}
	changed := differing(r.properties, p)
	if len(changed) == 0 {
		return nil
	}
	s.say(st, name, "UPDATE_IN_PROGRESS", "")
	if replaces(d.kind, changed) {
		if !r.retain {
			// In this order, other than CloudFormation: rules and policies
			// cannot be there twice.
			if err := k.remove(w, r.id, r.properties); err != nil {
				return err
			}
		}
		m, err := k.create(w, generated, p)
		return s.settle(w, st, name, m, p, "UPDATE_COMPLETE", err)
	}
	m, err := k.update(w, r.id, r.properties, p)
	return s.settle(w, st, name, m, p, "UPDATE_COMPLETE", err)
}

// settle notes what was made, as far as it was.
func (s *Server) settle(w *world, st *stack, name string, m made, p properties, status string, err error) error {
	r := st.resources[name]
	if m.id != "" {
		s.mu.Lock()
		r.made, r.properties = m, p
		s.mu.Unlock()
	}
	if err != nil {
		return err
	}
	if k := kinds[r.kind]; k.observe != nil {
		if r.expected, err = k.observe(w, m.id); err != nil {
			return err
		}
	}
	s.say(st, name, status, "")
	return nil
}

// unmake removes one resource from a stack and, unless it is to be retained,
// from the world.
func (s *Server) unmake(w *world, st *stack, name string, keepRetained bool) error {
	r := st.resources[name]
	switch {
	case r.id == "":
	case r.retain && keepRetained:
		s.say(st, name, "DELETE_SKIPPED", "")
	default:
		s.say(st, name, "DELETE_IN_PROGRESS", "")
		if err := kinds[r.kind].remove(w, r.id, r.properties); err != nil {
			s.say(st, name, "DELETE_FAILED", reason(err))
			return err
		}
		s.say(st, name, "DELETE_COMPLETE", "")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(st.resources, name)
	st.order = slices.DeleteFunc(st.order, func(n string) bool { return n == name })
	return nil
}

// tearDown removes all of a stack, in the order opposite to its making.
func (s *Server) tearDown(w *world, st *stack) error {
	for _, name := range slices.Backward(slices.Clone(st.order)) {
		if err := s.unmake(w, st, name, true); err != nil {
			return &failure{name, err}
		}
	}
	return nil
}

// execute does what a change set says and takes it back if that fails.
func (s *Server) execute(w *world, c *changeSet) {
	st := c.stack
	create := c.kind == "CREATE"
	verb := map[bool]string{true: "CREATE", false: "UPDATE"}[create]
	err := s.apply(w, st, c.template, c.values, c.imports)
	if err == nil {
		var outputs []outputView
		if outputs, err = outputsOf(real(st, c.template, c.values)); err == nil {
			s.mu.Lock()
			st.template, st.body, st.values, st.outputs = c.template, c.body, c.values, outputs
			s.note(st, st.name, verb+"_COMPLETE", "")
			s.mu.Unlock()
			return
		}
	}
	why := "The following resource(s) failed to " + strings.ToLower(verb) + ": " + err.Error()
	if !create {
		s.say(st, st.name, "UPDATE_ROLLBACK_IN_PROGRESS", why)
		end := "UPDATE_ROLLBACK_COMPLETE"
		if err := s.apply(w, st, st.template, st.values, false); err != nil {
			end, why = "UPDATE_ROLLBACK_FAILED", err.Error()
		}
		s.say(st, st.name, end, why)
		return
	}
	on, end := "ROLLBACK_IN_PROGRESS", "ROLLBACK_COMPLETE"
	if c.onFailure == "DELETE" {
		on, end = "DELETE_IN_PROGRESS", "DELETE_COMPLETE"
	}
	s.say(st, st.name, on, why)
	if err := s.tearDown(w, st); err != nil {
		end, why = strings.TrimSuffix(end, "COMPLETE")+"FAILED", err.Error()
	}
	s.say(st, st.name, end, why)
}

func outputsOf(sc *scope) ([]outputView, error) {
	var out []outputView
	for _, key := range slices.Sorted(maps.Keys(sc.outputs)) {
		o := sc.outputs[key]
		ok, err := sc.holds(o.condition)
		if err != nil {
			return nil, err
		}
		if !ok {
			continue
		}
		v, err := sc.eval(o.value)
		if err != nil {
			return nil, err
		}
		out = append(out, outputView{key, text(v), o.description})
	}
	return out, nil
}

// detection is one run of drift detection.
type detection struct {
	at     time.Time
	drifts []driftView
	status string
}

// detect compares resources with what they were when the stack made them.
func (s *Server) detect(w *world, st *stack) detection {
	d := detection{at: s.opts.Clock.Now(), status: "IN_SYNC"}
	for _, name := range st.order {
		r := st.resources[name]
		v := driftView{StackID: st.id, LogicalID: name, PhysicalID: r.id, Type: r.kind, Status: "IN_SYNC", At: d.at, Expected: compact(r.expected)}
		k := kinds[r.kind]
		if k.observe == nil {
			v.Status, v.Expected = "NOT_CHECKED", ""
			d.drifts = append(d.drifts, v)
			continue
		}
		now, err := k.observe(w, r.id)
		if err != nil {
			v.Status = "DELETED"
		} else {
			v.Actual = compact(now)
			all := maps.Clone(r.expected)
			maps.Copy(all, now)
			for _, path := range slices.Sorted(maps.Keys(all)) {
				if r.expected[path] != now[path] {
					v.Status = "MODIFIED"
					kind := "NOT_EQUAL"
					if now[path] == "" {
						kind = "REMOVE"
					} else if r.expected[path] == "" {
						kind = "ADD"
					}
					v.Differences = append(v.Differences, differenceView{path, r.expected[path], now[path], kind})
				}
			}
		}
		if v.Status != "IN_SYNC" {
			d.status = "DRIFTED"
		}
		d.drifts = append(d.drifts, v)
	}
	return d
}

func compact(m map[string]string) string {
	b, _ := json.Marshal(m) // strings always marshal
	return string(b)
}
