// A function of spectral.yaml: complains about schemas that contain themselves.
export default function acyclic(schemas) {
  const problems = [];
  const uses = (node) => {
    if (node === null || typeof node !== 'object') return [];
    const own = typeof node.$ref === 'string' ? [node.$ref.replace(/^.*\//, '')] : [];
    return own.concat(...Object.values(node).map(uses));
  };
  const visit = (name, path) => {
    if (path.includes(name)) {
      problems.push({ message: `the schema contains itself: ${[...path, name].join(' > ')}`, path: ['components', 'schemas', name] });
      return;
    }
    uses(schemas[name]).forEach((used) => visit(used, [...path, name]));
  };
  Object.keys(schemas).forEach((name) => visit(name, []));
  return problems;
}
