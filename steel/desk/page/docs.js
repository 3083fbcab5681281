// Renders the OpenAPI schema of the service as a readable page.

function make(tag, text = "", ...children) {
  const element = document.createElement(tag);
  element.append(text, ...children);
  return element;
}

const api = await (await fetch("openapi.json")).json();
const resolve = (schema) => (schema?.$ref ? api.components.schemas[schema.$ref.split("/").pop()] : schema ?? {});

/** Returns an example value for a schema, built from the examples of its properties. */
function buildExample(reference) {
  const schema = resolve(reference);
  if (schema.examples) return schema.examples[0];
  if (schema.default !== undefined) return schema.default;
  if (schema.anyOf) return buildExample(schema.anyOf[0]);
  if (schema.enum) return schema.enum[0];
  if (schema.type === "object") {
    const properties = Object.entries(schema.properties ?? {});
    return Object.fromEntries(properties.map(([name, property]) => [name, buildExample(property)]));
  }
  if (schema.type === "array") return schema.prefixItems?.map(buildExample) ?? [buildExample(schema.items)];
  return { number: 0.5, integer: 1, boolean: true, null: null }[schema.type] ?? schema.format ?? "text";
}

function buildTable(rows) {
  return make("table", "", ...rows.map((cells) => make("tr", "", ...cells.map((cell) => make("td", cell)))));
}

function describe(path, method, route) {
  const article = make("article", "", make("h3", "", make("code", `${method.toUpperCase()} ${path}`)),
    make("p", route.summary));
  if (route.parameters?.length) {
    article.append(buildTable(route.parameters.map(({ name, description }) => [name, description ?? ""])));
  }
  const body = route.requestBody;
  if (body) {
    article.append(make("p", `Request body: ${Object.keys(body.content).join(", ")}. ${body.description ?? ""}`));
    const json = body.content["application/json"];
    if (json) article.append(make("pre", JSON.stringify(buildExample(json.schema), null, 2)));
  }
  for (const [status, response] of Object.entries(route.responses)) {
    article.append(make("p", "", make("strong", status), ` ${response.description}`));
    const json = response.content?.["application/json"];
    if (json?.schema && status < 300) article.append(make("pre", JSON.stringify(buildExample(json.schema), null, 2)));
  }
  return article;
}

const docs = document.querySelector("#docs");
docs.prepend(make("h1", api.info.title), make("pre", api.info.description));
for (const [path, methods] of Object.entries(api.paths)) {
  for (const [method, route] of Object.entries(methods)) docs.append(describe(path, method, route));
}
