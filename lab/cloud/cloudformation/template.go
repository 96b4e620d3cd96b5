package cloudformation

import (
	"encoding/base64"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"gopkg.in/yaml.v3"

	"github.com/lecafe/lecafe/lab/cloud/query"
)

// document is a template after its intrinsic functions' short forms have been
// made long: !Ref X is {Ref: X}.
type document struct {
	parameters map[string]parameter
	conditions map[string]any
	resources  map[string]declared
	outputs    map[string]output
	order      []string // of the resources: what is referred to comes first
}

type parameter struct {
	Type           string   `yaml:"Type"`
	Default        *string  `yaml:"Default"`
	AllowedPattern string   `yaml:"AllowedPattern"`
	MinValue       *float64 `yaml:"MinValue"`
	MaxValue       *float64 `yaml:"MaxValue"`
}

type declared struct {
	kind       string
	condition  string
	properties any
	retain     bool
	needs      []string // logical IDs
}

type output struct {
	description, condition string
	value                  any
}

// invalid is CloudFormation's error for whatever is wrong with a request.
// https://docs.aws.amazon.com/AWSCloudFormation/latest/APIReference/CommonErrors.html
func invalid(format string, args ...any) *query.Error {
	return query.Errorf("ValidationError", format, args...)
}

// parse reads a template, YAML or JSON.
func parse(body string) (*document, error) {
	if len(body) > 51200 {
		return nil, invalid("1 validation error detected: Value at 'templateBody' failed to satisfy constraint: Member must have length less than or equal to 51200")
	}
	var root yaml.Node
	if err := yaml.Unmarshal([]byte(body), &root); err != nil || len(root.Content) == 0 {
		return nil, invalid("Template format error: YAML not well-formed. (%v)", err)
	}
	plain, err := long(root.Content[0])
	if err != nil {
		return nil, err
	}
	top, ok := plain.(map[string]any)
	if !ok {
		return nil, invalid("Template format error: unsupported structure.")
	}
	var head struct {
		Parameters map[string]parameter `yaml:"Parameters"`
	}
	if err := root.Decode(&head); err != nil {
		return nil, invalid("Template format error: %v", err)
	}
	d := &document{parameters: head.Parameters, conditions: section(top, "Conditions"), resources: map[string]declared{}, outputs: map[string]output{}}
	for name, v := range section(top, "Resources") {
		m, ok := v.(map[string]any)
		if !ok {
			return nil, invalid("Template format error: [/Resources/%s] resource definition is malformed", name)
		}
		for key := range m {
			if !slices.Contains([]string{"Type", "Condition", "Properties", "DeletionPolicy", "UpdateReplacePolicy", "DependsOn", "Metadata"}, key) {
				return nil, query.Unsupported("the resource attribute %s, of %s", key, name)
			}
		}
		r := declared{kind: text(m["Type"]), condition: text(m["Condition"]), properties: m["Properties"], retain: text(m["DeletionPolicy"]) == "Retain"}
		if kinds[r.kind].create == nil {
			return nil, query.Unsupported("resources of type %s, as %s", r.kind, name)
		}
		d.resources[name] = r
	}
	if len(d.resources) == 0 {
		return nil, invalid("Template format error: At least one Resources member must be defined.")
	}
	for name, v := range section(top, "Outputs") {
		m, _ := v.(map[string]any)
		d.outputs[name] = output{text(m["Description"]), text(m["Condition"]), m["Value"]}
	}
	for name, r := range d.resources {
		seen := map[string]bool{}
		each(r.properties, func(ref string) {
			if _, ok := d.resources[ref]; ok {
				seen[ref] = true
			}
		})
		r.needs = slices.Sorted(maps.Keys(seen))
		d.resources[name] = r
	}
	return d, d.sort()
}

func section(top map[string]any, name string) map[string]any {
	m, _ := top[name].(map[string]any)
	return m
}

func text(v any) string {
	switch v := v.(type) {
	case nil:
		return ""
	case string:
		return v
	case bool:
		return strconv.FormatBool(v)
	}
	return fmt.Sprint(v)
}

// long makes plain values of a node. Scalars but numbers and booleans are
// strings, as in CloudFormation: dates too.
func long(n *yaml.Node) (any, error) {
	var v any
	switch n.Kind {
	case yaml.MappingNode:
		m := map[string]any{}
		for i := 0; i+1 < len(n.Content); i += 2 {
			x, err := long(n.Content[i+1])
			if err != nil {
				return nil, err
			}
			m[n.Content[i].Value] = x
		}
		v = m
	case yaml.SequenceNode:
		l := []any{}
		for _, c := range n.Content {
			x, err := long(c)
			if err != nil {
				return nil, err
			}
			l = append(l, x)
		}
		v = l
	case yaml.ScalarNode:
		v = n.Value
		switch n.Tag {
		case "!!int":
			if i, err := strconv.Atoi(n.Value); err == nil {
				v = i
			}
		case "!!bool":
			v = n.Value == "true"
		}
	default:
		return nil, invalid("Template format error: YAML aliases are not allowed in CloudFormation templates")
	}
	if !strings.HasPrefix(n.Tag, "!") || strings.HasPrefix(n.Tag, "!!") {
		return v, nil
	}
	switch name := n.Tag[1:]; name {
	case "Ref", "Condition":
		return map[string]any{name: v}, nil
	case "GetAtt":
		if s, ok := v.(string); ok {
			id, attribute, _ := strings.Cut(s, ".")
			v = []any{id, attribute}
		}
		return map[string]any{"Fn::GetAtt": v}, nil
	default:
		return map[string]any{"Fn::" + name: v}, nil
	}
}

var variable = regexp.MustCompile(`\$\{([^!}][^}]*)\}`)

// each tells f of every name that a value refers to.
func each(v any, f func(name string)) {
	switch v := v.(type) {
	case []any:
		for _, x := range v {
			each(x, f)
		}
	case map[string]any:
		for key, x := range v {
			switch key {
			case "Ref":
				f(text(x))
			case "Fn::GetAtt":
				if l, ok := x.([]any); ok && len(l) > 0 {
					f(text(l[0]))
				}
			case "Fn::Sub":
				if s, ok := x.(string); ok {
					for _, m := range variable.FindAllStringSubmatch(s, -1) {
						name, _, _ := strings.Cut(m[1], ".")
						f(name)
					}
				}
			}
			each(x, f)
		}
	}
}

// sort puts resources after those that they refer to.
func (d *document) sort() error {
	const visiting, done = 1, 2
	state := map[string]int{}
	var visit func(name string) error
	visit = func(name string) error {
		switch state[name] {
		case done:
			return nil
		case visiting:
			return invalid("Circular dependency between resources: [%s]", name)
		}
		state[name] = visiting
		for _, n := range d.resources[name].needs {
			if err := visit(n); err != nil {
				return err
			}
		}
		state[name] = done
		d.order = append(d.order, name)
		return nil
	}
	for _, name := range slices.Sorted(maps.Keys(d.resources)) {
		if err := visit(name); err != nil {
			return err
		}
	}
	return nil
}

// values checks parameters and fills in the defaults.
func (d *document) values(given map[string]string) (map[string]string, error) {
	for name := range given {
		if _, ok := d.parameters[name]; !ok {
			return nil, invalid("Parameters: [%s] do not exist in the template", name)
		}
	}
	out := map[string]string{}
	var missing []string
	for name, p := range d.parameters {
		v, ok := given[name]
		if !ok && p.Default == nil {
			missing = append(missing, name)
			continue
		}
		if !ok {
			v = *p.Default
		}
		if p.AllowedPattern != "" {
			re, err := regexp.Compile("^(?:" + p.AllowedPattern + ")$")
			if err != nil {
				return nil, invalid("Template format error: parameter %s: %v", name, err)
			}
			if !re.MatchString(v) {
				return nil, invalid("Parameter '%s' must match pattern %s", name, p.AllowedPattern)
			}
		}
		if p.Type == "Number" {
			n, err := strconv.ParseFloat(v, 64)
			switch {
			case err != nil:
				return nil, invalid("Parameter '%s' must be a number.", name)
			case p.MinValue != nil && n < *p.MinValue:
				return nil, invalid("Parameter '%s' must be a number not less than %v", name, *p.MinValue)
			case p.MaxValue != nil && n > *p.MaxValue:
				return nil, invalid("Parameter '%s' must be a number not greater than %v", name, *p.MaxValue)
			}
		}
		out[name] = v
	}
	if len(missing) > 0 {
		slices.Sort(missing)
		return nil, invalid("Parameters: [%s] must have values", strings.Join(missing, ", "))
	}
	return out, nil
}

// scope is what names mean while a template is evaluated.
type scope struct {
	*document
	values map[string]string
	pseudo map[string]string
	// ref and attribute return what a resource gives; in a plan, where nothing
	// is there yet, its name.
	ref       func(logicalID string) (string, bool)
	attribute func(logicalID, attribute string) (string, bool)

	within []string // conditions that are being evaluated
}

// noValue takes a property away.
type noValue struct{}

func (s *scope) holds(condition string) (bool, error) {
	if condition == "" {
		return true, nil
	}
	c, ok := s.conditions[condition]
	if !ok {
		return false, invalid("Template format error: Unresolved condition dependency %s in the template", condition)
	}
	if slices.Contains(s.within, condition) {
		return false, invalid("Template error: Found circular condition dependency: %s", condition)
	}
	s.within = append(s.within, condition)
	defer func() { s.within = s.within[:len(s.within)-1] }()
	v, err := s.eval(c)
	if err != nil {
		return false, err
	}
	b, ok := v.(bool)
	if !ok {
		return false, invalid("Template error: condition %s is no boolean", condition)
	}
	return b, nil
}

func (s *scope) lookup(name string) (any, error) {
	if name == "AWS::NoValue" {
		return noValue{}, nil
	}
	if v, ok := s.pseudo[name]; ok {
		return v, nil
	}
	if v, ok := s.values[name]; ok {
		if strings.HasPrefix(s.parameters[name].Type, "List<") || s.parameters[name].Type == "CommaDelimitedList" {
			out := []any{}
			for part := range strings.SplitSeq(v, ",") {
				out = append(out, strings.TrimSpace(part))
			}
			return out, nil
		}
		return v, nil
	}
	if _, ok := s.resources[name]; ok {
		if v, ok := s.ref(name); ok {
			return v, nil
		}
	}
	return nil, invalid("Template format error: Unresolved resource dependencies [%s] in the template", name)
}

func (s *scope) get(name, attribute string) (any, error) {
	if _, ok := s.resources[name]; ok {
		if v, ok := s.attribute(name, attribute); ok {
			return v, nil
		}
	}
	return nil, invalid("Template error: resource %s has no attribute %s, or does not exist", name, attribute)
}

// eval returns a value without intrinsic functions.
func (s *scope) eval(v any) (any, error) {
	switch v := v.(type) {
	case []any:
		out := []any{}
		for _, x := range v {
			y, err := s.eval(x)
			if err != nil {
				return nil, err
			}
			if _, gone := y.(noValue); !gone {
				out = append(out, y)
			}
		}
		return out, nil
	case map[string]any:
		if len(v) == 1 {
			for key, x := range v {
				if key == "Ref" || key == "Condition" && text(x) != "" || strings.HasPrefix(key, "Fn::") {
					return s.function(key, x)
				}
			}
		}
		out := map[string]any{}
		for key, x := range v {
			y, err := s.eval(x)
			if err != nil {
				return nil, err
			}
			if _, gone := y.(noValue); !gone {
				out[key] = y
			}
		}
		return out, nil
	}
	return v, nil
}

func (s *scope) function(name string, arg any) (any, error) {
	if name == "Ref" {
		return s.lookup(text(arg))
	}
	if name == "Condition" {
		if c, ok := arg.(string); ok && s.conditions[c] != nil {
			return s.holds(c)
		}
		x, err := s.eval(arg) // a policy's Condition, not a reference to one
		return map[string]any{name: x}, err
	}
	if name == "Fn::GetAtt" {
		l, _ := arg.([]any)
		if len(l) != 2 {
			return nil, invalid("Template error: every Fn::GetAtt object requires two non-empty parameters")
		}
		return s.get(text(l[0]), text(l[1]))
	}
	if name == "Fn::If" {
		l, _ := arg.([]any)
		if len(l) != 3 {
			return nil, invalid("Template error: Fn::If requires a list argument with three members")
		}
		ok, err := s.holds(text(l[0]))
		if err != nil {
			return nil, err
		}
		if ok {
			return s.eval(l[1])
		}
		return s.eval(l[2])
	}
	if name == "Fn::Sub" {
		return s.substitute(arg)
	}
	x, err := s.eval(arg)
	if err != nil {
		return nil, err
	}
	list, _ := x.([]any)
	switch name {
	case "Fn::Base64":
		return base64.StdEncoding.EncodeToString([]byte(text(x))), nil
	case "Fn::Equals":
		if len(list) == 2 {
			return text(list[0]) == text(list[1]), nil
		}
	case "Fn::Not":
		if len(list) == 1 {
			b, _ := list[0].(bool)
			return !b, nil
		}
	case "Fn::And", "Fn::Or":
		for _, b := range list {
			if b == (name == "Fn::Or") {
				return b, nil
			}
		}
		return name == "Fn::And", nil
	case "Fn::Join":
		if len(list) == 2 {
			var parts []string
			l, _ := list[1].([]any)
			for _, p := range l {
				parts = append(parts, text(p))
			}
			return strings.Join(parts, text(list[0])), nil
		}
	}
	return nil, query.Unsupported("the function %s with these arguments", name)
}

func (s *scope) substitute(arg any) (any, error) {
	format, ok := arg.(string)
	if !ok {
		return nil, query.Unsupported("Fn::Sub with a map of variables")
	}
	var failed error
	out := variable.ReplaceAllStringFunc(format, func(m string) string {
		var v any
		var err error
		name, attribute, dotted := strings.Cut(m[2:len(m)-1], ".")
		if dotted {
			v, err = s.get(name, attribute)
		} else {
			v, err = s.lookup(name)
		}
		if err != nil && failed == nil {
			failed = err
		}
		return text(v)
	})
	return strings.ReplaceAll(out, "${!", "${"), failed
}
